"""Commands in a container or a batch system: without a home, without a user name, with small shared memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medfocus.starter.phantoms import write_set
from tests import surroundings

# Settings of small runs.
SMALL = ["--set", "cluster.cpus=1", "--set", "segment.points_per_side=2", "--json"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled phantoms."""
    folder = tmp_path_factory.mktemp("images")
    write_set(folder, 4, seed=0, preset="easy", size=128)
    return folder


@pytest.fixture
def plain() -> Iterator[Path]:
    """A folder of a user without a passwd entry."""
    surroundings.skip_unless_possible()
    with surroundings.folder() as folder:
        yield folder


def test_commands_run_without_a_home_and_with_small_shared_memory(plain: Path, images: Path) -> None:
    source = surroundings.copy_for_user(images, plain)
    settings = [*SMALL, "--set", f"work={plain / 'work'}"]
    for home, arguments in (
        (
            {"HOME": "/nonexistent"},
            ["pack", str(source / "images"), f"{plain}/shards", "--labels", f"{source}/labels.csv"],
        ),
        ({"HOME": "/"}, ["doctor"]),
        ({}, ["embed", f"{plain}/shards", f"{plain}/features"]),
    ):
        process = surroundings.medfocus(*arguments, *settings, cwd=plain, environment=home, shared_memory="64m")
        assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr[-2000:]
    assert json.loads(process.stdout)["embedded"] == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in plain.rglob("*") if source not in (path, *path.parents))


def test_a_folder_without_write_permission_is_named_in_one_line(plain: Path, images: Path) -> None:
    source = surroundings.copy_for_user(images, plain)
    closed = plain / "closed"
    closed.mkdir(mode=0o555)
    arguments = ["pack", str(source / "images"), str(plain / "shards"), *SMALL]
    home = {"HOME": str(closed)}
    for key, message in (
        ({}, "closed/work/pseudonym.key: no key can be made there (Permission denied); set work to a folder that can"),
        ({"MEDFOCUS_KEY": "k" * 32}, "closed/work/pack: cannot be made (Permission denied); set work to a folder that"),
    ):
        process = surroundings.medfocus(*arguments, cwd=closed, environment=home | key)
        assert process.returncode == 2 and process.stdout == ""
        *before, line = process.stderr.splitlines()
        assert not any(" ERROR " in earlier for earlier in before)
        assert message in line
    process = surroundings.medfocus(*arguments, "--set", f"work={plain / 'work'}", cwd=closed, environment=home)
    assert process.returncode == 0 and list(closed.iterdir()) == []


def test_a_temporary_folder_that_ray_cannot_use_is_replaced_with_a_warning(tmp_path: Path, images: Path) -> None:
    for name in ("x" * 60, "not-there"):
        folder = tmp_path / name
        if name != "not-there":
            folder.mkdir()
        command = [sys.executable, "-m", "medfocus", "pack", str(images / "images"), str(tmp_path / f"{name}-shards")]
        process = subprocess.run(
            [*command, *SMALL, "--set", f"work={tmp_path / 'work'}"],
            env={**os.environ, "TMPDIR": str(folder), "MEDFOCUS_KEY": "k" * 32},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert process.returncode == 0 and json.loads(process.stdout)["rows"] == 4
        warning, *others, packed = process.stderr.splitlines()
        assert f"WARNING temporary files of Ray are in /tmp/ray, since {folder} is " in warning and " packed " in packed
        assert [text for line in others for text in ("WARNING", "ERROR", "Traceback") if text in line] == ["WARNING"]
        assert "4 images that are not DICOM were not looked at for text" in "".join(others)
