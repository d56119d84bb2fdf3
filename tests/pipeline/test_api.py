"""The public Python API: its examples run, and its results have the keys that they are typed with."""

import doctest
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import medfocus
from medfocus.pipeline import api

_FUNCTIONS = (api.pack, api.embed, api.train, api.score, api.evaluate, api.quarantine)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with sixteen phantoms and their labels."""
    command = [sys.executable, "-m", "medfocus.starter.phantoms", str(tmp_path), "--count", "16"]
    subprocess.run(command, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("ray_session")
def test_the_examples_run_and_leave_the_process_as_it_is(folder: Path) -> None:
    loggers = {name: logging.getLogger(name).level for name in ("", "medfocus", "ray")}
    streams, handler = (sys.stdout, sys.stderr), signal.getsignal(signal.SIGTERM)
    root = list(logging.getLogger().handlers)
    names: dict[str, object] = {}
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder(recurse=False)
    for thing in (api, *_FUNCTIONS):
        (example,) = finder.find(thing, getattr(thing, "__name__", ""), globs=names)
        assert example.examples, thing
        example.globs = names
        runner.run(example, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0
    results = {
        "packed": api.PackResult,
        "embedded": api.EmbedResult,
        "trained": api.TrainResult,
        "scored": api.ScoreResult,
        "evaluated": api.EvaluateResult,
    }
    for name, kind in results.items():
        assert set(names[name]) == set(kind.__annotations__), name  # type: ignore[call-overload]
    assert {name: logging.getLogger(name).level for name in loggers} == loggers
    assert (sys.stdout, sys.stderr) == streams and signal.getsignal(signal.SIGTERM) == handler
    assert logging.getLogger().handlers == root
    made = {path.name for path in folder.iterdir()} - {"images", "labels.csv", "masks"}
    assert made == {"shards", "features", "out", "work"}


def test_the_package_offers_the_api_and_imports_it_late() -> None:
    assert {function.__name__ for function in _FUNCTIONS} < set(medfocus.__all__) <= set(dir(medfocus))
    assert medfocus.score is api.score and (Path(medfocus.__file__).parent / "py.typed").is_file()
    script = (
        "import sys, medfocus; medfocus.Config(); sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'mlflow')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'scoer'"):
        medfocus.scoer  # noqa: B018


def test_a_wrong_call_raises_what_the_command_says(tmp_path: Path) -> None:
    with pytest.raises(medfocus.UsageError, match="no such folder"):
        medfocus.pack(tmp_path / "missing", tmp_path / "shards", config=medfocus.Config(work=str(tmp_path / "work")))
