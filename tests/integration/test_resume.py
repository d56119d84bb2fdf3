"""Runs that are killed resume: a driver process, SIGKILL, and the same call again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medfocus.starter.phantoms import write_set

pytestmark = pytest.mark.commands

COUNT, ROWS_PER_SHARD = 32, 4


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "medfocus", *arguments, "--json"]


def result(*arguments: str) -> dict:
    """Run a command to its end; its JSON result."""
    process = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def kill_when(condition: Callable[[], bool], *arguments: str) -> None:
    """Run a command, and send SIGKILL to it and to its Ray as soon as a condition holds."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed, labelled phantoms."""
    root = tmp_path_factory.mktemp("resume")
    write_set(root, COUNT, seed=0, preset="easy", size=256)
    result("pack", str(root / "images"), str(root / "shards"), "--labels", str(root / "labels.csv"), *settings(root))
    return root


def settings(root: Path) -> list[str]:
    """The settings of every call, whose work folder is below ``root``."""
    keys = {
        "work": root / "work",
        "pack.rows_per_shard": ROWS_PER_SHARD,
        "segment.points_per_side": 2,
        "train.patience": 50,
    }
    return [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]


def test_killed_embed_and_train_resume(packed: Path) -> None:
    shards, features = str(packed / "shards"), str(packed / "features")
    files = packed / "features" / "features"
    kill_when(lambda: len(list(files.glob("*.parquet"))) >= 2, "embed", shards, features, *settings(packed))
    commits = {file.name: file.stat().st_mtime_ns for file in files.glob("*.parquet")}
    embedded = result("embed", shards, features, *settings(packed))
    # Ray outlives its driver for a moment, in which it may commit another shard.
    assert embedded["resumed"] >= ROWS_PER_SHARD * len(commits) and embedded["resumed"] % ROWS_PER_SHARD == 0
    assert embedded["embedded"] == COUNT - embedded["resumed"]
    assert all((files / name).stat().st_mtime_ns == moment for name, moment in commits.items())

    training = ["train", features, *settings(packed), "--set", "train.epochs=4", "--set", "train.folds=2"]
    folder = packed / "features" / "training"
    # Ray notes a checkpoint up to two seconds after it is there; what it has not noted is trained again.
    notes = "*/checkpoint_manager_snapshot.json"
    kill_when(lambda: any("checkpoint_20" in file.read_text() for file in folder.glob(notes)), *training)
    trained = result(*training)
    assert 1 <= trained["resumed_epochs"] < 4 + 4 + trained["epochs"] and trained["held_out_rows"] == COUNT
    assert trained["model_uri"] == "models:/medfocus/1"
