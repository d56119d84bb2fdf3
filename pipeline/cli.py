"""The ``medfocus`` command: reads the call, runs one module, prints its result, and turns errors into exit codes."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from medfocus.cluster.errors import ClusterError
from medfocus.pipeline.config import Config, documented_keys, load_config
from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined, UsageError
from medfocus.pipeline.logs import configure, log

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
    call = _parser().parse_args(arguments)
    configure()
    try:
        config = load_config(call.config, call.set)
    except UsageError as error:
        return _told(error)
    try:
        result = _run(call, config)
    except TooManyQuarantined as error:
        _print(call, error.result)
        return _told(error)
    except ClusterError as error:
        return _told(MedFocusError(str(error)))
    except KeyboardInterrupt:
        log.error("stopped; the same call goes on from here")
        return 1
    except Exception as error:
        return _told(_unwrapped(error, config))
    _print(call, result)
    return 0


def _run(call: argparse.Namespace, config: Config) -> dict[str, Any]:
    # Imported when asked for: ray, torch and mlflow take seconds.
    run: Callable[..., dict[str, Any]] = import_module(f"medfocus.pipeline.{call.command}").run
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
        print(json.dumps(result), flush=True)
    elif call.command == "train":
        print(result["model_uri"], flush=True)


def _told(error: MedFocusError) -> int:
    log.error("%s", " ".join(str(error).split()))
    return error.exit_code


def _unwrapped(error: BaseException, config: Config) -> MedFocusError:
    """What a person should read of an error that may have come through Ray, or was not foreseen."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)  # Ray's errors carry the worker's; some are also of its class
        if isinstance(cause, MedFocusError) and inner is None:
            return type(cause)(str(cause).splitlines()[0])  # Ray Data adds lines about its retries
        cause = inner or cause.__cause__
    trace = Path(config.work) / "last-error.txt"
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.write_text("".join(traceback.format_exception(error)))
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return MedFocusError(f"{type(error).__name__}: {first[:300]}; the whole trace is in {trace}")


if __name__ == "__main__":
    sys.exit(main())
