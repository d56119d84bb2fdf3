"""Runs that are killed go on where they were: the real driver process, SIGKILL, the same call again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

COUNT = 48


def call(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "medfocus", *arguments, "--json"]


def result(*arguments: str) -> dict:
    ended = subprocess.run(call(*arguments), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def killed(arguments: list[str], moment: Callable[[], bool]) -> None:
    """Run a command and SIGKILL it at the moment; the Ray it started goes with it."""
    process = subprocess.Popen(
        call(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 180
    while not moment():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    subprocess.run([sys.executable, "-m", "medfocus.starter.phantoms", str(root), "--count", str(COUNT)], check=True)
    result("pack", str(root / "images"), str(root / "shards"), "--labels", str(root / "labels.csv"), *settings(root))
    return root


def settings(root: Path) -> list[str]:
    keys = {"work": root / "work", "pack.rows_per_shard": 6, "segment.points_per_side": 3, "train.patience": 50}
    return [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]


def test_killed_embed_and_train_go_on(packed: Path) -> None:
    shards, features = str(packed / "shards"), str(packed / "features")
    files = packed / "features" / "features"
    killed(["embed", shards, features, *settings(packed)], lambda: len(list(files.glob("*.parquet"))) >= 2)
    kept = {file.name: file.stat().st_mtime_ns for file in files.glob("*.parquet")}
    embedded = result("embed", shards, features, *settings(packed))
    assert embedded["resumed"] >= 6 * len(kept) and embedded["embedded"] == COUNT - embedded["resumed"]
    assert all((files / name).stat().st_mtime_ns == moment for name, moment in kept.items())

    training = ["train", features, *settings(packed), "--set", "train.epochs=8", "--set", "train.folds=2"]
    folder = packed / "features" / "training"
    killed(training, lambda: len(list(folder.glob("*/checkpoint_*/state.json"))) >= 2)
    trained = result(*training)
    assert 1 <= trained["resumed_epochs"] < 8 + 8 + trained["epochs"] and trained["held_out_rows"] == COUNT
    assert trained["model_uri"] == "models:/medfocus/1"
