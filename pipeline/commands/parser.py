"""The command line: one entry a command, which says what the command takes and which ``run`` it calls."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import shtab

from medfocus.pipeline.config import Config, documented_keys
from medfocus.pipeline.presets import PRESETS

_DESCRIPTION = """Archives of medical images to scored, explained results, with SAM2 regions guiding a frozen CLIP.
Research software: not for clinical use."""
# Sections of the configuration that every command reads.
_SHARED_SECTIONS = ("storage", "cluster", "tracking")
_PLACE = "a local path or an s3:// URI"
_LABELS = (
    "CSV in any dialect, Parquet or Excel with the columns label, what it is the label of (file, SOPInstanceUID,"
    " SeriesInstanceUID, StudyInstanceUID, AccessionNumber or PatientID) and, if known, patient_id and site; of several"
    " files, the first that gives a value counts; without it, the first folder below SOURCE, or below train, val or"
    " test there, names the class of images that are not DICOM"
)

_WEIGHTS = (
    "for fetch the models: a preset, a SAM2 hub name (facebook/sam2.1-hiera-tiny), hf-hub:OWNER/NAME of a CLIP, or"
    " ARCHITECTURE/TAG of open_clip (ViT-B-16/laion2b_s34b_b88k); for check the folder"
)


class Argument:
    """One argument of a command.

    Args:
        flags: as ``argparse`` takes them; the name without dashes is the parameter of ``run``, unless ``dest`` says so.
        complete: what a shell completes, ``shtab.FILE`` or ``shtab.DIRECTORY``.
        options: further options of ``ArgumentParser.add_argument``.
    """

    def __init__(self, *flags: str, complete: Mapping[str, Any] | None = None, **options: Any):
        self.flags, self.complete, self.options = flags, complete, options

    @property
    def name(self) -> str:
        """The name of its value in a parsed call."""
        return str(self.options.get("dest") or self.flags[0].lstrip("-").replace("-", "_"))

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the argument to a parser."""
        action = parser.add_argument(*self.flags, **self.options)
        if self.complete is not None:
            action.complete = self.complete  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        name: also that of the module whose ``run`` it calls.
        summary: one line for the help.
        arguments: become the parameters of ``run`` after the configuration.
        sections: of the configuration that the command reads, beside those that all read.
        printed: key of the result that is printed where no JSON is asked for; empty where ``run`` prints all there is.
        shared: options that all commands take and that are parameters of ``run`` too.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    sections: tuple[str, ...] = ()
    printed: str = ""
    shared: tuple[str, ...] = ()

    def run(self, config: Config, call: argparse.Namespace) -> dict[str, Any]:
        """Run the command as it was called. Its module is imported here: ray, torch and mlflow take seconds."""
        module = import_module(f"medfocus.pipeline.commands.{self.name.replace('-', '_')}")
        result: dict[str, Any] = module.run(config, **{name: getattr(call, name) for name in call.parameters})
        return result


_SHARDS = Argument("shards", metavar="SHARDS", help=f"prefix that pack wrote; {_PLACE}", complete=shtab.DIRECTORY)
_OVERWRITE = Argument("--overwrite", action="store_true", help="remove what the output holds first")
_RETRY_QUARANTINED = Argument(
    "--retry-quarantined", action="store_true", help="take shards with quarantined rows again, after a fix"
)
_JOB_SERVER = Argument(
    "--address",
    metavar="URL",
    help="job server of the cluster (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265, the end of a tunnel)",
)


def _prefix(name: str, text: str) -> Argument:
    """A prefix that the command reads or writes."""
    return Argument(name, metavar=name.upper(), help=f"{text}; {_PLACE}", complete=shtab.DIRECTORY)


COMMANDS = (
    Command(
        "pack",
        "images to shards and a manifest, without what identifies a person",
        (
            _prefix("source", "folder of images, DICOM, zip and tar files, found by their bytes"),
            _prefix("shards", "prefix to write to; what is new is added to shards that are there"),
            Argument("--labels", metavar="FILE", action="append", help=_LABELS, complete=shtab.FILE),
            Argument(
                "--audit",
                metavar="FILE",
                help="write what was removed, by attribute and counts, without values",
                complete=shtab.FILE,
            ),
            Argument(
                "--mapping",
                metavar="FILE",
                help="write the ids and paths of each pseudonym, to a local file that its owner alone can read",
                complete=shtab.FILE,
            ),
            Argument(
                "--withdraw",
                metavar="FILE",
                help="text file with a PatientID a line: these patients leave the shards, and never enter them again",
                complete=shtab.FILE,
            ),
            _RETRY_QUARANTINED,
        ),
        ("pack", "deid", "burned_in", "decode"),
    ),
    Command(
        "embed",
        "masks and tokens of labelled shards, kept for training",
        (_SHARDS, _prefix("features", "prefix to write to"), _OVERWRITE, _RETRY_QUARANTINED),
        ("decode", "segment", "clip", "model"),
    ),
    Command(
        "train",
        "prompt tuning on features; registers the model and prints its URI",
        (
            _prefix("features", "prefix that embed wrote"),
            Argument("--name", default="medfocus", help="registered model (default: medfocus)"),
        ),
        ("model", "train"),
        printed="model_uri",
    ),
    Command(
        "score",
        "predictions and quarantine of an archive",
        (
            _SHARDS,
            _prefix("out", "prefix to write to"),
            Argument(
                "--model", dest="model_uri", required=True, metavar="URI", help="models:/NAME/VERSION or a folder"
            ),
            _OVERWRITE,
            _RETRY_QUARANTINED,
        ),
        ("decode", "segment", "clip", "score"),
    ),
    Command(
        "quarantine",
        "what is in quarantine, by cause",
        (_prefix("out", "prefix that pack, embed or score wrote"),),
    ),
    Command(
        "evaluate",
        "metrics of predictions against labels, with intervals",
        (
            _prefix("out", "prefix that score wrote"),
            Argument(
                "--labels",
                required=True,
                metavar="SHARDS|FILE",
                help="shards, or a label file as pack takes it",
                complete=shtab.FILE,
            ),
            Argument("--split", metavar="NAME", help="of shards, the split to compare: test, which train leaves out"),
        ),
        ("evaluate", "labels", "deid"),
    ),
    Command(
        "submit",
        "a command on a cluster, as a job that is followed until it ends",
        (
            Argument("line", nargs="+", metavar="COMMAND", help="command line of MedFocus, behind --"),
            _JOB_SERVER,
            Argument("--id", help="name of the job; a second job of this name is refused"),
            Argument("--detach", action="store_true", help="print the id of the job, and do not wait for its end"),
        ),
        shared=("json", "verbose", "quiet"),
    ),
    Command(
        "jobs",
        "the jobs of a cluster; with ID, one of them and the end of its log",
        (
            Argument("id", nargs="?", metavar="ID", help="one job; without it all are listed"),
            _JOB_SERVER,
            Argument("--logs", action="store_true", help="show the whole log and follow the job until it ends"),
            Argument("--stop", action="store_true", help="stop the job"),
        ),
    ),
    Command(
        "weights",
        "a folder of weights for machines without internet: fetch makes it, check verifies it",
        (
            Argument("action", choices=("fetch", "check"), help="fetch models into a folder, or check a folder"),
            Argument("names", nargs="+", metavar="NAME|FOLDER", help=_WEIGHTS),
            Argument("--to", metavar="FOLDER", help=f"folder that fetch writes to; {_PLACE}", complete=shtab.DIRECTORY),
        ),
    ),
    Command(
        "verify-deid",
        "search for planted names, ids and dates in shards, logs and the tracking store",
        (
            _SHARDS,
            Argument(
                "--planted",
                required=True,
                metavar="FILE",
                help="text with a name, an id or a date on each line, or a table (.csv) of them",
                complete=shtab.FILE,
            ),
        ),
    ),
    Command(
        "doctor",
        "what is installed and reachable, and the mend for what is not",
        (Argument("--probe", metavar="PREFIX", help=f"write, read and delete below this prefix; {_PLACE}"),),
    ),
    Command(
        "demo",
        "the whole pipeline on phantoms, from images to metrics",
        (
            Argument(
                "--work",
                metavar="DIR",
                help="folder for all that the demo makes (default: work)",
                complete=shtab.DIRECTORY,
            ),
        ),
    ),
)
# What every command takes.
_SHARED = (
    Argument("--config", metavar="FILE", help="YAML file with configuration keys", complete=shtab.FILE),
    Argument(
        "--preset",
        choices=tuple(PRESETS),
        metavar="NAME",
        help=f"frozen models that fit together ({', '.join(PRESETS)}); what --config and --set say goes before it",
    ),
    Argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="one configuration key; repeatable"
    ),
    Argument("--json", action="store_true", help="print one JSON object as the last line of stdout"),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line. A parsed call has ``command``, the ``Command`` to run."""
    parser = argparse.ArgumentParser(
        prog="medfocus",
        description=_DESCRIPTION,
        epilog=_presets_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(parser, "--print-completion", help="print a script that completes commands in a shell")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        entry = parsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=_keys_help(command.sections + _SHARED_SECTIONS),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in _SHARED:
            argument.add_to(entry)
        verbosity = entry.add_mutually_exclusive_group()
        verbosity.add_argument("--verbose", action="store_true", help="log details, and what libraries and workers log")
        verbosity.add_argument("--quiet", action="store_true", help="show the result and errors only")
        for argument in command.arguments:
            argument.add_to(entry)
        parameters = [*(argument.name for argument in command.arguments), *command.shared]
        entry.set_defaults(command=command, parameters=parameters)
    return parser


def _presets_help() -> str:
    """The presets, each with its models and what they cost."""
    lines = ["presets (--preset NAME, for every command):"]
    for name, preset in PRESETS.items():
        lines += [f"  {name}", f"      {preset.summary}; {preset.cost}"]
    return "\n".join(lines)


def _keys_help(sections: Sequence[str]) -> str:
    """The configuration keys of sections, each with its default and what it means."""
    lines = ["configuration keys (--config FILE, --set SECTION.KEY=VALUE):"]
    for key, default, description in documented_keys():
        if "." not in key or key.split(".")[0] in sections:
            value = "" if default is None else f" [{default}]"
            lines.append(f"  {key}{value}\n      {description}")
    return "\n".join(lines)
