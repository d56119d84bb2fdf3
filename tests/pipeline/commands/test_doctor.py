import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medfocus.pipeline.commands import doctor
from medfocus.pipeline.config import StorageSection, load_config
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import MedFocusError
from medfocus.stages.weights import file_sha256
from tests import servers

CHECKS = ["python", "torch", "torchvision", "ray", "storage", "mlflow", "sam2 weights", "clip weights", "disk"]


def printed(text: str) -> dict[str, tuple[str, str]]:
    """What each check printed: ok or wrong, and the rest of the line."""
    found = re.findall(r"^(ok|wrong) +([a-z0-9 ]+): (.+)$", text, re.MULTILINE)
    assert [name for _, name, _ in found] == CHECKS and len(text.strip().splitlines()) == len(CHECKS)
    return {name: (state, text) for state, name, text in found}


def test_what_works_is_ok_and_no_secret_is_shown(
    ray_session: None,
    s3: Callable[[str], str],
    s3_url: str,
    mlflow_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = s3("doctor-probe")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"content")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url.replace("://", "://user:secret-word@"))
    config = load_config(None, [f"work={tmp_path}", f"segment.weights={weights}"])
    found = doctor.run(config, f"{bucket}/some/prefix")["checks"]
    text = capsys.readouterr().out
    assert {name: told for name, (state, told) in printed(text).items() if state == "ok"} == found
    assert "secret-word" not in text
    assert found["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert "wrote, read and deleted" in found["storage"] and s3_url in found["storage"]
    assert mlflow_url in found["mlflow"]
    assert file_sha256(weights) in found["sam2 weights"]
    assert locate(bucket, StorageSection()).files(recursive=True) == []


def test_each_wrong_thing_has_its_line_and_hides_no_other(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret-word@127.0.0.1:{servers.free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a user's own setting; ours waits longer
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"content")
    endpoint = f"http://user:secret-word@127.0.0.1:{servers.free_port()}"
    settings = [f"segment.weights={weights}", f"segment.sha256={'a' * 64}", "clip.weights=/no/such/file.safetensors"]
    config = load_config(None, [f"work={tmp_path}", f"storage.s3_endpoint={endpoint}", *settings])
    with pytest.raises(MedFocusError) as caught:
        doctor.run(config, "s3://bucket/x")
    told = str(caught.value)
    assert caught.value.exit_code == 1 and told.startswith("4 of 9 checks failed (storage, mlflow, sam2 weights,")
    text = capsys.readouterr().out
    lines = printed(text)
    wrong = {name: told for name, (state, told) in lines.items() if state == "wrong"}
    assert list(wrong) == ["storage", "mlflow", "sam2 weights", "clip weights"]
    assert "check storage.s3_endpoint" in wrong["storage"] and "correct MLFLOW_TRACKING_URI" in wrong["mlflow"]
    assert "fetch the file again or correct sha256" in wrong["sam2 weights"]
    assert "no such weights file; correct the path" in wrong["clip weights"]
    assert "secret-word" not in text + told


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    """In a process of its own: this one is connected."""
    ended = called(tmp_path, f"cluster.address=127.0.0.1:{servers.free_port()}")
    state, told = printed(ended.stdout)["ray"]
    assert state == "wrong" and "correct cluster.address" in told


def test_a_library_that_cannot_be_imported_is_one_wrong_line(tmp_path: Path) -> None:
    for name in ("ray", "mlflow"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text("raise ImportError('libmissing.so: not found')\n")
    lines = printed(called(tmp_path, "seed=0", PYTHONPATH=str(tmp_path / "broken")).stdout)
    for name in ("ray", "mlflow"):
        assert lines[name][0] == "wrong" and "libmissing.so: not found; install MedFocus again" in lines[name][1]
    assert [lines[name][0] for name in ("python", "torch", "disk")] == ["ok"] * 3


def called(work: Path, setting: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medfocus", "doctor", "--set", f"work={work}", "--set", setting]
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(Path.cwd())]))
    surroundings = {**os.environ, **environment, "PYTHONPATH": path}
    ended = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=120)
    assert ended.returncode == 1, ended.stderr
    return ended
