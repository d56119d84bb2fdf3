"""The command line as a shell sees it: streams, signals, and what it says where nothing is as it should be."""

import argparse
import inspect
import json
import logging
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medfocus.pipeline import cli
from medfocus.pipeline.commands import quarantine
from medfocus.pipeline.commands.parser import COMMANDS, Command, build_parser
from medfocus.pipeline.config import Config
from medfocus.pipeline.console import logs
from medfocus.pipeline.data import records
from medfocus.pipeline.errors import MedFocusError
from tests.pipeline.evaluation.archive import CLASSES, draw_rows, write_predictions

MEDFOCUS = f"{shlex.quote(sys.executable)} -m medfocus"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f"set -o pipefail; {command}"
    call = ["bash", "-c", script]
    return subprocess.run(
        call, capture_output=True, encoding="latin-1", env={**os.environ, **environment}, timeout=120, check=False
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A prefix with an image in quarantine whose message is in another script."""
    (tmp_path / "quarantine").mkdir()
    row = {"image_id": "a", "source_uri": "x", "stage": "decode", "error": "Odd", "message": "腫瘍 ✓ Größe"}
    pq.write_table(records.QUARANTINE.empty_table().from_pylist([row]), tmp_path / "quarantine" / "part.parquet")
    return tmp_path


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_stdout_cannot_encode_is_escaped(out: Path, encoding: str) -> None:
    ended = shell(f"{MEDFOCUS} quarantine {out} --json", **(ASCII | {"PYTHONIOENCODING": encoding}))
    assert ended.returncode == 0 and ended.stderr == ""
    assert ("腫瘍".encode().decode("latin-1") if encoding == "utf-8" else r"\u816b\u760d") in ended.stdout


def test_what_stderr_cannot_encode_is_escaped() -> None:
    ended = shell(f"{MEDFOCUS} quarantine x --set model.focus=腫瘍", **ASCII)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "ERROR model.focus: input should be" in line and r"\udce8" in line


def test_classes_in_other_scripts_can_be_evaluated_where_only_ascii_can_be_shown(tmp_path: Path) -> None:
    classes = ("腫瘍", "كيس", "Größe $x_1")
    rows = draw_rows()
    for row in rows:
        for name in ("label", "truth"):
            row[name] = classes[CLASSES.index(row[name])]
    write_predictions(str(tmp_path / "out"), [rows], [classes])
    labels = "".join(f"{row['image_id']},{row['truth']}\n" for row in rows)
    (tmp_path / "labels.csv").write_text(f"image_id,label\n{labels}", encoding="utf-8")
    settings = f"--set work={tmp_path / 'work'} --set evaluate.resamples=20"
    ended = shell(
        f"{MEDFOCUS} evaluate {tmp_path / 'out'} --labels {tmp_path / 'labels.csv'} {settings} --json", **ASCII
    )
    assert ended.returncode == 0 and not re.search(" (WARNING|ERROR) |Warning", ended.stderr)
    assert ended.stdout.isascii() and ended.stderr.isascii() and r"sensitivity/\u816b\u760d" in ended.stderr
    assert json.loads(ended.stdout)["rows"] == len(rows)


@pytest.mark.parametrize("arguments", ["--help", "embed --help", "quarantine OUT"])
def test_a_reader_that_leaves_is_no_error(out: Path, arguments: str) -> None:
    ended = shell(f"{MEDFOCUS} {arguments.replace('OUT', str(out))} | true")
    assert ended.returncode == 0 and ended.stderr == ""


def test_a_closed_stdout_is_no_error_and_a_full_disk_is_told(out: Path) -> None:
    ended = shell(f"{MEDFOCUS} quarantine {out} >&-")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert shell(f"{MEDFOCUS} quarantine {out} 2>&-").returncode == 0
    ended = shell(f"{MEDFOCUS} quarantine {out} > /dev/full")
    assert ended.returncode == 1 and "cannot be written to stdout (No space left on device)" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_what_libraries_print_is_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, untouched_logging: None
) -> None:
    def run(config: Config, out: str) -> dict[str, int]:
        print("🏃 View run at: http://reader:secret-word@host")
        logs.show("a line of the result")
        return {"rows": 3}

    monkeypatch.setattr(quarantine, "run", run)
    assert cli.main(["quarantine", "x", "--json"]) == 0
    assert capsys.readouterr().out == 'a line of the result\n{"rows": 3}\n'


@pytest.mark.parametrize("work", ["work", "/dev/null/work"])
def test_an_error_that_was_not_foreseen_is_one_line_and_its_trace_holds_no_secret(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    untouched_logging: None,
    work: str,
) -> None:
    def run(config: Config, out: str) -> None:
        raise RuntimeError("\x1b[36mno answer\x1b[39m from http://reader:secret-word@host/  twice\nand more")

    monkeypatch.setattr(quarantine, "run", run)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quarantine", "x", "--set", f"work={work}"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert "RuntimeError: no answer from http://host/  twice; the whole trace is in " in printed.err
    (trace,) = tmp_path.rglob("last-error.txt")
    assert "Traceback" in trace.read_text() and trace.stat().st_mode & 0o077 == 0
    assert "secret-word" not in printed.err + trace.read_text() and "\x1b" not in printed.err + trace.read_text()


def test_blanks_of_a_name_stay_in_the_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, untouched_logging: None
) -> None:
    def run(config: Config, out: str) -> None:
        raise MedFocusError("class 'solid  mass ' is no class\nof the model; \x1b[31mcorrect\x1b[0m it")

    monkeypatch.setattr(quarantine, "run", run)
    assert cli.main(["quarantine", "x"]) == 1
    assert "ERROR class 'solid  mass ' is no class of the model; correct it\n" in capsys.readouterr().err


@pytest.mark.usefixtures("signals_by_default")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_in_order(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "images").mkdir()
    subprocess.run([sys.executable, "-m", "medfocus.starter.phantoms", str(tmp_path), "--count", "4"], check=True)
    command = [sys.executable, "-m", "medfocus", "pack", str(tmp_path / "images"), str(tmp_path / "shards")]
    command += ["--set", f"work={tmp_path / 'work'}", "--set", "pack.rows_per_shard=1", "--set", "cluster.cpus=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = tmp_path / "work" / "mlflow.db"
    deadline = time.monotonic() + 100
    while not (store.exists() and statuses(store)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 1 and printed == ""
    assert "stopped; the same call goes on from here" in said.splitlines()[-1] and said.count(" ERROR ") == 1
    assert statuses(store) == ["KILLED"]


# A command that logs as MedFocus and as a library do, in a process of its own.
LOGGING_COMMAND = """
import logging, sys, warnings
from medfocus.pipeline import cli
from medfocus.pipeline.commands import quarantine
from medfocus.pipeline.console.logs import log, progress, show

def run(config, out):
    for name, logger in (("own", log), ("library", logging.getLogger("library"))):
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)(f"{name}-{level}")
    warnings.warn("library-warns")
    with progress("quarantine", 2, 0, print) as counter:
        counter.add(1, 0)
    show("result")
    return {"quarantined": 0}

quarantine.run = run
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("option", "lines"),
    [
        ("", {"own-info", "own-warning", "own-error", "library-error"}),
        ("--quiet", {"own-error", "library-error"}),
        (
            "--verbose",
            {"own-debug", "own-info", "own-warning", "own-error", "library-info", "library-warning", "library-error"},
        ),
    ],
)
def test_verbose_and_quiet_say_how_much_is_logged(option: str, lines: set[str]) -> None:
    ended = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(LOGGING_COMMAND)} quarantine x --json {option}")
    assert ended.returncode == 0 and ended.stdout == 'result\n{"quarantined": 0}\n'
    assert set(re.findall(r"(?:own|library)-(?:debug|info|warning|error)", ended.stderr)) == lines
    assert ("library-warns" in ended.stderr) == (option == "--verbose")


def test_quiet_shows_the_result_and_errors_only(tmp_path: Path) -> None:
    rows = draw_rows()
    write_predictions(str(tmp_path / "out"), [rows])
    labels = "".join(f"{row['image_id']},{row['truth']}\n" for row in rows)
    (tmp_path / "labels.csv").write_text(f"image_id,label\n{labels}")
    call = f"{MEDFOCUS} evaluate {tmp_path / 'out'} --labels {tmp_path / 'labels.csv'} --json"
    call += f" --set work={tmp_path / 'work'} --set evaluate.resamples=20"
    normal, quiet = shell(call), shell(f"{call} --quiet")
    assert normal.returncode == quiet.returncode == 0
    assert " INFO " in normal.stderr and quiet.stderr == ""
    results = [json.loads(ended.stdout.splitlines()[-1]) for ended in (normal, quiet)]
    assert results[0]["metrics"] == results[1]["metrics"] and len(quiet.stdout.splitlines()) == 1
    ended = shell(f"{MEDFOCUS} evaluate {tmp_path / 'missing'} --labels x --quiet")
    assert ended.returncode == 2 and " ERROR " in ended.stderr and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_a_command_takes_what_all_take_and_lists_its_keys(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(option in text for option in ("--config FILE", "--set SECTION.KEY=VALUE", "--json", "cluster.address"))
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--verbose", "--quiet"])
    assert ended.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_arguments_of_a_command_are_the_parameters_of_its_run(command: Command) -> None:
    run = import_module(f"medfocus.pipeline.commands.{command.name.replace('-', '_')}").run
    parser = argparse.ArgumentParser()
    for argument in command.arguments:
        argument.add_to(parser)
    names = [argument.name for argument in command.arguments]
    assert {action.dest for action in parser._actions} == {"help", *names}
    assert [*names, *command.shared] == list(inspect.signature(run).parameters)[1:]


def test_help_does_not_import_what_takes_seconds() -> None:
    script = (
        "import sys; from medfocus.pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'ray', 'torch', 'mlflow', 'pyarrow', 'numpy'} & sys.modules.keys()), file=sys.stderr)"
    )
    ended = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}")
    assert ended.returncode == 0 and ended.stderr == "[]\n" and "COMMAND" in ended.stdout


@pytest.mark.parametrize(
    ("words", "completion"),
    [
        ("medfocus sco", "score"),
        ("medfocus score --mo", "--model"),
        ("medfocus embed --retry", "--retry-quarantined"),
        ("medfocus evaluate --qui", "--quiet"),
        ("medfocus score a b --model models:/x --over", "--overwrite"),
        ("medfocus pack FOLDER/on", "FOLDER/one"),
    ],
)
def test_bash_completes_commands_and_options(tmp_path: Path, words: str, completion: str) -> None:
    (tmp_path / "one").mkdir()
    words, completion = (text.replace("FOLDER", str(tmp_path)) for text in (words, completion))
    script = f"""
        source <({MEDFOCUS} --print-completion bash)
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _shtab_medfocus medfocus "${{COMP_WORDS[-1]}}" ""
        printf '%s\n' "${{COMPREPLY[@]}}"
    """
    ended = shell(script)
    assert ended.stderr == "" and ended.stdout.splitlines() == [completion]


@pytest.mark.parametrize(("name", "option"), [("zsh", "--retry-quarantined"), ("tcsh", "--print-completion")])
def test_other_shells_complete_commands_and_options(name: str, option: str) -> None:
    ended = shell(f"{MEDFOCUS} --print-completion {name}")
    assert ended.returncode == 0 and ended.stderr == ""
    assert all(command.name in ended.stdout for command in COMMANDS) and option.strip("-") in ended.stdout


# What a notebook has set up is as it was after each call.
NOTEBOOK = """
import logging, signal, sys, warnings
import ray, mlflow
import medfocus
from medfocus.pipeline.commands import pack, quarantine

handler = logging.NullHandler()
logging.basicConfig(handlers=[handler], level=logging.WARNING)
logging.getLogger("notebook").setLevel(logging.DEBUG)
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("the notebook's own handler"))

def state():
    names = ("", "medfocus", "notebook", "py.warnings")
    loggers = [(name, logging.getLogger(name).level, logging.getLogger(name).handlers) for name in names]
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    return loggers, signals, sys.stdout, sys.stderr, sys.unraisablehook, warnings.showwarning

config = medfocus.load_config(None, [f"work={sys.argv[1]}/work", "cluster.cpus=1"])
before = str(state())
pack.run(config, f"{sys.argv[1]}/images", f"{sys.argv[1]}/shards", None)
assert str(state()) == before, state()
quarantine.run(config, f"{sys.argv[1]}/shards")
assert str(state()) == before, state()
print("unchanged")
"""


def test_a_command_called_from_python_leaves_logging_streams_and_signals_alone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "medfocus.starter.phantoms", str(tmp_path), "--count", "2"], check=True)
    ended = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(NOTEBOOK)} {tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["        0 rows in quarantine", "unchanged"]


def statuses(store: Path) -> list[str]:
    with sqlite3.connect(store) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs")]
