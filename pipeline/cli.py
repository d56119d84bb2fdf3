"""The ``medfocus`` command: reads the call, runs one command, prints its result, and turns errors into exit codes."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfocus.cluster.account import own_folder
from medfocus.cluster.environment import prepare_environment
from medfocus.cluster.errors import ClusterError
from medfocus.cluster.job_output import version_differences
from medfocus.pipeline.commands.parser import build_parser
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.console.causes import own_error, reason
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import Verbosity, configure, flush, log, only_results, show, without_codes
from medfocus.pipeline.console.signals import stopped_by_signals
from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 failed, 2 wrong call, 3 too many in quarantine)."""
    configure()
    try:
        call = build_parser().parse_args(arguments)
        configure(Verbosity.VERBOSE if call.verbose else Verbosity.QUIET if call.quiet else Verbosity.NORMAL)
        with stopped_by_signals(), only_results():
            return _attempt(call)
    except BrokenPipeError:  # the reader of a help text or of a completion script has left
        return 0
    finally:
        flush()


def _attempt(call: argparse.Namespace) -> int:
    """Run the command and report an error; returns the exit code."""
    try:
        prepare_environment(quiet=not call.verbose)
        for difference in version_differences():
            log.warning("%s", difference)
        config = load_config(call.config, call.set, call.preset)
    except (UsageError, ClusterError) as error:
        return _report(error, getattr(error, "exit_code", 1))
    try:
        _print(call, call.command.run(config, call))
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


def _print(call: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the result, as JSON where the call asks for it."""
    if call.json:
        show(json.dumps(result))
    elif call.command.printed:
        show(result[call.command.printed])


def _report(error: Exception | str, code: int) -> int:
    """Log an error; returns the exit code."""
    log.error("%s", error)
    return code


def _unforeseen(error: Exception, config: Config) -> MedFocusError:
    """One line for an unforeseen error; its trace is kept in a file that only this account can read."""
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
