"""Commands in the folder of a data project whose packages have the names of MedFocus's own folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medfocus.starter.phantoms import write_set
from tests.integration.one_process import run_commands

pytestmark = pytest.mark.commands

SETTINGS = ["segment.points_per_side=2", "train.epochs=1", "train.folds=2", "evaluate.resamples=20"]
NAMES = ("pipeline", "stages", "cluster", "starter", "tests", "benchmarks")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with eight phantoms, and with packages that raise when they are imported."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} of the project was imported')")
    write_set(tmp_path / "data", 8, seed=0, preset="easy", size=128)
    return tmp_path


def result(process: subprocess.CompletedProcess[str]) -> dict:
    """The JSON object that the last command printed."""
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def medfocus(project: Path, *arguments: str) -> dict:
    """Run a command in the project's folder; ``-P`` keeps the folder off the path, as the console script does."""
    command = [sys.executable, "-P", "-m", "medfocus", *arguments, "--json"]
    return result(subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False))


def test_every_command_runs_beside_packages_of_the_same_names(project: Path) -> None:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    preparation = [
        ["pack", "data/images", "shards", "--labels", "data/labels.csv", *options],
        ["embed", "shards", "features", *options],
        ["train", "features", "--name", "mine", *options],
    ]
    model = result(run_commands(preparation, project))["model_uri"]
    assert medfocus(project, "score", "shards", "out", "--model", model, *options)["scored"] == 8
    assert medfocus(project, "evaluate", "out", "--labels", "shards", *options)["rows"] == 8


def test_python_in_the_project_imports_medfocus_and_the_projects_own_package(project: Path) -> None:
    """As in a notebook, whose folder is first on the path."""
    code = "import medfocus.pipeline.config, medfocus.stages.batch, medfocus.cluster.resources\nimport pipeline"
    process = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert process.stderr.strip().endswith("ImportError: pipeline of the project was imported")
