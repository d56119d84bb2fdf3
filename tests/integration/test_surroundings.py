"""Commands where a container or a batch system gives them little: no home, no name, small shared memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import surroundings

# What a short-lived command needs of a machine with few cores.
SMALL = ["--set", "cluster.cpus=1", "--set", "segment.points_per_side=2", "--json"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    subprocess.run([sys.executable, "-m", "medfocus.starter.phantoms", str(folder), "--count", "4"], check=True)
    return folder


@pytest.fixture
def plain() -> Iterator[Path]:
    surroundings.skip_unless_possible()
    with surroundings.folder() as folder:
        yield folder


def test_a_user_without_a_home_and_little_shared_memory_can_work(plain: Path, images: Path) -> None:
    own = surroundings.given(plain, images)
    settings = [*SMALL, "--set", f"work={plain / 'work'}"]
    for home, arguments in (
        ({"HOME": "/nonexistent"}, ["pack", str(own / "images"), f"{plain}/shards", "--labels", f"{own}/labels.csv"]),
        ({"HOME": "/"}, ["doctor"]),
        ({}, ["embed", f"{plain}/shards", f"{plain}/features"]),
    ):
        ended = surroundings.medfocus(*arguments, *settings, cwd=plain, environment=home, shared_memory="64m")
        assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr[-2000:]
    assert json.loads(ended.stdout)["embedded"] == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in plain.rglob("*") if own not in (path, *path.parents))


def test_folders_that_cannot_be_written_are_told_in_one_line(plain: Path, images: Path) -> None:
    own = surroundings.given(plain, images)
    closed = plain / "closed"
    closed.mkdir(mode=0o555)
    arguments = ["pack", str(own / "images"), str(plain / "shards"), *SMALL]
    home = {"HOME": str(closed)}
    ended = surroundings.medfocus(*arguments, cwd=closed, environment=home)
    assert ended.returncode == 1 and ended.stdout == ""
    *before, line = ended.stderr.splitlines()
    assert not any(" ERROR " in earlier for earlier in before)
    assert "closed/work: cannot be made (Permission denied); set work to a folder that can be written" in line
    ended = surroundings.medfocus(*arguments, "--set", f"work={plain / 'work'}", cwd=closed, environment=home)
    assert ended.returncode == 0 and list(closed.iterdir()) == []


def test_a_long_temporary_folder_is_replaced_and_that_is_said(tmp_path: Path, images: Path) -> None:
    for name in ("x" * 60, "not-there"):
        folder = tmp_path / name
        if name != "not-there":
            folder.mkdir()
        command = [sys.executable, "-m", "medfocus", "pack", str(images / "images"), str(tmp_path / f"{name}-shards")]
        ended = subprocess.run(
            [*command, *SMALL, "--set", f"work={tmp_path / 'work'}"],
            env={**os.environ, "TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0 and json.loads(ended.stdout)["rows"] == 4
        _classes, said, packed = ended.stderr.splitlines()
        assert f"WARNING temporary files of Ray are in /tmp/ray, since {folder} is " in said and " packed " in packed
