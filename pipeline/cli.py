"""The ``medfocus`` command: reads the call, runs one module, prints its result, and turns errors into exit codes."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medfocus.cluster.account import complete_environment, own_folder
from medfocus.cluster.errors import ClusterError
from medfocus.pipeline.config import Config, documented_keys, load_config
from medfocus.pipeline.console.causes import own_error, reason
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import configure, flush, log, only_results, show, without_codes
from medfocus.pipeline.console.signals import stopped_by_signals
from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined, UsageError

_DESCRIPTION = """Archives of medical images to scored, explained results, with SAM2 regions guiding a frozen CLIP.
Research software: not for clinical use."""

# Sections of the configuration that a command reads, beside storage, cluster and tracking.
_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pack": ("images to shards and a manifest", ("pack",)),
    "embed": ("masks and tokens of labelled shards, kept for training", ("decode", "segment", "clip", "model")),
    "train": ("prompt tuning on features; registers the model and prints its URI", ("model", "train")),
    "score": ("predictions and quarantine of an archive", ("decode", "segment", "clip", "score")),
    "quarantine": ("what is in quarantine, by cause", ()),
    "evaluate": ("metrics of predictions against labels, with intervals", ("evaluate",)),
    "doctor": ("what is installed and reachable, and the mend for what is not", ()),
    "demo": ("the whole pipeline on phantoms, from images to metrics", ()),
}
# What each command's ``run`` takes after the configuration.
_POSITIONS = {
    "pack": ("source", "shards", "labels"),
    "embed": ("shards", "features"),
    "train": ("features", "name"),
    "score": ("shards", "out", "model"),
    "quarantine": ("out",),
    "evaluate": ("out", "labels"),
    "doctor": ("probe",),
    "demo": ("work",),
}
_LABELS = (
    "CSV in any dialect, Parquet or Excel with the columns file (path below SOURCE) or image_id, label and, if known,"
    " patient_id (a pseudonym) and site; without it, the first folder below SOURCE, or below train, val or test there,"
    " names the class"
)
_EVERYWHERE = ("storage", "cluster", "tracking")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 failed, 2 wrong call, 3 too many in quarantine)."""
    configure()
    try:
        call = _parser().parse_args(arguments)
        with stopped_by_signals(), only_results():
            return _attempt(call)
    finally:
        flush()


def _attempt(call: argparse.Namespace) -> int:
    try:
        complete_environment()
        config = load_config(call.config, call.set)
    except (UsageError, ClusterError) as error:
        return _report(error, getattr(error, "exit_code", 1))
    try:
        _print(call, _run(call, config))
    except TooManyQuarantined as error:
        _print(call, error.result)
        return _report(error, error.exit_code)
    except ClusterError as error:
        return _report(error, 1)
    except (KeyboardInterrupt, SystemExit):
        return _report("stopped; the same call goes on from here", 1)
    except Exception as error:
        known = own_error(error) or _unforeseen(error, config)
        return _report(known, known.exit_code)
    return 0


def _run(call: argparse.Namespace, config: Config) -> dict[str, Any]:
    # Imported when asked for: ray, torch and mlflow take seconds.
    run: Callable[..., dict[str, Any]] = import_module(f"medfocus.pipeline.commands.{call.command}").run
    options = {name: getattr(call, name) for name in ("overwrite", "retry_quarantined") if name in call}
    return run(config, *(getattr(call, name) for name in _POSITIONS[call.command]), **options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medfocus", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name, (summary, sections) in _COMMANDS.items():
        made[name] = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=_keys_help(sections + _EVERYWHERE),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made[name].add_argument("--config", metavar="FILE", help="YAML file with configuration keys")
        made[name].add_argument(
            "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="one configuration key; repeatable"
        )
        made[name].add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    _add_arguments(made)
    return parser


def _add_arguments(made: dict[str, argparse.ArgumentParser]) -> None:
    place = "a local path or an s3:// URI"
    made["pack"].add_argument("source", metavar="SOURCE", help=f"folder of images, found by their bytes; {place}")
    made["pack"].add_argument("shards", metavar="SHARDS", help=f"prefix to write to; {place}")
    made["pack"].add_argument("--labels", metavar="FILE", help=_LABELS)
    made["embed"].add_argument("shards", metavar="SHARDS", help=f"prefix that pack wrote; {place}")
    made["embed"].add_argument("features", metavar="FEATURES", help=f"prefix to write to; {place}")
    made["train"].add_argument("features", metavar="FEATURES", help=f"prefix that embed wrote; {place}")
    made["train"].add_argument("--name", default="medfocus", help="registered model (default: medfocus)")
    made["score"].add_argument("shards", metavar="SHARDS", help=f"prefix that pack wrote; {place}")
    made["score"].add_argument("out", metavar="OUT", help=f"prefix to write to; {place}")
    made["score"].add_argument("--model", required=True, metavar="URI", help="models:/NAME/VERSION or a folder")
    made["quarantine"].add_argument("out", metavar="OUT", help=f"prefix that pack, embed or score wrote; {place}")
    made["evaluate"].add_argument("out", metavar="OUT", help=f"prefix that score wrote; {place}")
    made["evaluate"].add_argument(
        "--labels", required=True, metavar="SHARDS|FILE", help="shards, or a label file as pack takes it"
    )
    made["doctor"].add_argument("--probe", metavar="PREFIX", help=f"write, read and delete below this prefix; {place}")
    for name in ("embed", "score"):
        made[name].add_argument("--overwrite", action="store_true", help="remove what the output holds first")
        made[name].add_argument(
            "--retry-quarantined", action="store_true", help="take shards with quarantined rows again, after a fix"
        )
    made["demo"].add_argument("--work", metavar="DIR", help="folder for all that the demo makes (default: work)")


def _keys_help(sections: Sequence[str]) -> str:
    lines = ["configuration keys (--config FILE, --set SECTION.KEY=VALUE):"]
    for key, default, description in documented_keys():
        if "." not in key or key.split(".")[0] in sections:
            shown = "" if default is None else f" [{default}]"
            lines.append(f"  {key}{shown}\n      {description}")
    return "\n".join(lines)


def _print(call: argparse.Namespace, result: dict[str, Any]) -> None:
    if call.json:
        show(json.dumps(result))
    elif call.command == "train":
        show(result["model_uri"])


def _report(error: Exception | str, code: int) -> int:
    log.error("%s", error)
    return code


def _unforeseen(error: Exception, config: Config) -> MedFocusError:
    """One line for an error that was not foreseen; the trace is kept in a file that only this account reads."""
    trace = without_credentials(without_codes("".join(traceback.format_exception(error))))
    for place in (lambda: Path(config.work), own_folder):
        try:
            file = place() / "last-error.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as opened:
                opened.write(trace)
        except (OSError, ClusterError):
            continue
        return MedFocusError(f"{reason(error)}; the whole trace is in {file}")
    return MedFocusError(f"{reason(error)}; no folder can be written, set work to one to see the whole trace")


if __name__ == "__main__":
    sys.exit(main())
