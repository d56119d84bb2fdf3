import os
import subprocess
import sys
from pathlib import Path

import pytest

from medfocus.cluster.account import own_folder
from medfocus.cluster.environment import DEFAULTS, OWN_CLUSTER, prepare_environment
from medfocus.cluster.errors import ClusterError

SECRETS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*DEFAULTS, *OWN_CLUSTER, *SECRETS):
        monkeypatch.setenv(name, "")  # so that it is restored in any case
        monkeypatch.delenv(name)
    return monkeypatch


def test_defaults_give_way_to_what_the_user_has_set(empty: pytest.MonkeyPatch) -> None:
    empty.setenv("RAY_TRAIN_V2_ENABLED", "0")
    prepare_environment()
    expected = DEFAULTS | {"RAY_TRAIN_V2_ENABLED": "0"}
    assert {name: os.environ.get(name) for name in DEFAULTS} == expected
    assert not os.environ.keys() & {*OWN_CLUSTER, *SECRETS}


def test_each_own_cluster_has_a_secret_unless_the_user_names_one(empty: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare_environment(own_cluster=True)
    assert os.environ.items() >= OWN_CLUSTER.items() and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    secret = os.environ.pop("RAY_AUTH_TOKEN")
    prepare_environment(own_cluster=True)
    assert os.environ.pop("RAY_AUTH_TOKEN") != secret
    empty.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    prepare_environment(own_cluster=True)
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("home", ["/nonexistent", "/dev/null"])
def test_an_account_without_a_home_gets_one(empty: pytest.MonkeyPatch, home: str) -> None:
    empty.setenv("HOME", home)
    prepare_environment()
    assert os.environ["HOME"] == str(own_folder()) and Path(os.environ["HOME"]).is_dir()


def test_a_home_that_can_be_read_stays(empty: pytest.MonkeyPatch, tmp_path: Path, plain_user: None) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    empty.setenv("HOME", str(home))
    prepare_environment()
    assert os.environ["HOME"] == str(home)


def test_an_account_without_a_name_gets_one(empty: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        empty.setenv(name, "")
    empty.setattr("pwd.getpwuid", {}.__getitem__)
    prepare_environment()
    assert os.environ["LOGNAME"] == f"uid{os.getuid()}"


def test_no_home_and_no_temporary_folder_is_an_error_with_a_mend(empty: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError("no usable temporary directory")

    empty.setenv("HOME", "/nonexistent")
    empty.setattr("tempfile.gettempdir", fail)
    with pytest.raises(ClusterError, match="no temporary folder can be written; set TMPDIR"):
        prepare_environment()


IMPORTS = """
import sys

class Watch:
    def find_spec(self, name, path, target=None):
        import os
        if name in ("ray", "mlflow"):
            print(name, os.environ.get("RAY_TRAIN_V2_ENABLED"), os.environ.get("MLFLOW_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize(
    ("module", "library"),
    [("medfocus.cluster.connect", "ray"), ("medfocus.pipeline.tracking.runs", "mlflow")],
)
def test_the_environment_is_ready_before_a_library_reads_it(module: str, library: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    call = [sys.executable, "-c", IMPORTS.format(module=module)]
    ended = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert f"{library} 1 true" in ended.stdout.splitlines()


@pytest.mark.parametrize(("first", "mode"), [("medfocus.cluster.connect", "token"), ("ray", "None")])
def test_a_token_is_shown_unless_ray_has_read_the_mode_before(first: str, mode: str) -> None:
    """Ray cannot start a cluster where the mode is set after its import."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    code = f"import os, {first}, medfocus.cluster.connect; print(os.environ.get('RAY_AUTH_MODE'))"
    call = [sys.executable, "-c", code]
    environment |= {"RAY_AUTH_TOKEN": "a" * 64}
    assert subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout.strip() == mode
