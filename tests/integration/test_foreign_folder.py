"""Commands called in a data project's folder, whose packages have the names of our folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = ["segment.points_per_side=2", "train.epochs=1", "train.folds=2", "evaluate.resamples=20"]
NAMES = ("pipeline", "stages", "cluster", "starter", "tests", "benchmarks")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with packages of somebody else, none of which can be imported, and eight phantoms."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} of the project was imported')")
    command = [sys.executable, "-P", "-m", "medfocus.starter.phantoms", "data", "--count", "8"]
    subprocess.run(command, check=True, cwd=tmp_path)
    return tmp_path


def medfocus(project: Path, *arguments: str) -> dict:
    """Run a command in the project's folder; ``-P`` keeps that from the path, as the installed command does."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-P", "-m", "medfocus", *arguments, *settings, "--json"]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_every_command_runs_beside_packages_of_the_same_names(project: Path) -> None:
    medfocus(project, "pack", "data/images", "shards", "--labels", "data/labels.csv")
    medfocus(project, "embed", "shards", "features")
    model = medfocus(project, "train", "features", "--name", "mine")["model_uri"]
    assert medfocus(project, "score", "shards", "out", "--model", model)["scored"] == 8
    assert medfocus(project, "evaluate", "out", "--labels", "shards")["rows"] == 8


def test_python_in_the_project_finds_both(project: Path) -> None:
    """As a notebook does, whose folder is first on the path."""
    code = "import medfocus.pipeline.config, medfocus.stages.batch, medfocus.cluster.resources\nimport pipeline"
    ended = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert ended.stderr.strip().endswith("ImportError: pipeline of the project was imported")
