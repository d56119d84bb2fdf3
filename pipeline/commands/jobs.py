"""``medfocus jobs``: the jobs of a cluster, and what one of them prints."""

import json
import re
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from medfocus.cluster.job_output import result_line
from medfocus.cluster.jobs import Job, JobServer
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import one_line, pass_on, show
from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined, UsageError

_LAST_LINES = 10
# What Ray itself writes into the log of a job.
_OF_RAY = re.compile(r"Running entrypoint for job |\S+ \S+\tINFO job_manager\.py:")
# How a shell ends that does not find a command.
_NOT_FOUND = 127


def run(config: Config, id: str | None, address: str | None, logs: bool, stop: bool) -> dict[str, Any]:
    """List the jobs of a cluster; or show, follow or stop one of them.

    Args:
        config: the configuration; nothing in it concerns the job server.
        id: the job to show, follow or stop; None lists all.
        address: URL of the job server; None takes what the environment names, else a tunnel on this machine.
        logs: whether to show the whole log of the job and to follow it until it ends.
        stop: whether to stop the job.

    Returns:
        ``jobs``, or the ``id``, ``state``, ``started``, ``seconds``, ``exit_code`` and ``command`` of the one job.

    Raises:
        UsageError: the call is wrong.
        ClusterError: the job server does not answer, or knows no such job.
        MedFocusError: the job that was followed has failed; the exit code is that of its command.
    """
    if id is None and (logs or stop):
        raise UsageError("--logs and --stop take the id of a job: medfocus jobs ID --logs; medfocus jobs lists them")
    if logs and stop:
        raise UsageError("--logs and --stop exclude each other; stop the job, then look at its log")
    server = JobServer(address)
    if id is None:
        jobs = server.jobs()
        _show_table(jobs)
        return {"jobs": [_record(job) for job in jobs]}
    check_id(id)
    if logs:
        follow(server, id)
        return _record(server.job(id))
    job = server.stop(id) if stop else server.job(id)
    _show_table([job])
    if not stop:
        for line in server.last_lines(id, _LAST_LINES):
            show(f"  {_shown(result_line(line) or line)}")
    return _record(job)


def check_id(id: str) -> None:
    """Raise UsageError if a text cannot be the id of a job, which becomes part of a URL and of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,127}", id, re.ASCII):
        raise UsageError(f"{id!r} cannot be the id of a job; take at most 128 letters, digits, dots and dashes")


def follow(server: JobServer, id: str, as_json: bool = False) -> dict[str, Any]:
    """Show what a job prints, its results on stdout and its log on stderr, until it ends; then end as it has ended.

    Args:
        server: the job server.
        id: the job.
        as_json: the last line of the result is JSON, which is returned and not shown.

    Returns:
        The result, where it is asked for as JSON; else nothing.

    Raises:
        TooManyQuarantined: the command has ended with exit code 3.
        MedFocusError: the job has failed, was stopped, or is left to itself; exit codes 1 and 2 are those of the
            command.
    """
    last: str | None = None
    try:
        for line in server.follow(id):
            text = result_line(line)
            if text is None:
                if not _OF_RAY.match(line):
                    pass_on(line)
                continue
            if last is not None:
                show(last)
            last = text if as_json else None
            if last is None:
                show(text)
        job = server.job(id)
    except KeyboardInterrupt as interrupt:
        _leave(server, id, by_signal=bool(interrupt.args))
    if last is not None and (job.exit_code or 0) not in (0, TooManyQuarantined.exit_code):
        show(last)
        last = None
    return _end(job, {} if last is None else json.loads(last))


def _end(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """The result of a job that has succeeded; another raises an error with the exit code of its command."""
    if job.state == "SUCCEEDED":
        return result
    if job.state == "STOPPED":
        raise MedFocusError(f"job {job.id} was stopped; the same command goes on from there")
    text = f"job {job.id} ended with exit code {job.exit_code}; its log says why"
    if job.exit_code == TooManyQuarantined.exit_code:
        raise TooManyQuarantined(text, result)
    if job.exit_code in (MedFocusError.exit_code, UsageError.exit_code):
        error = MedFocusError(text)
        error.exit_code = job.exit_code
        raise error
    if job.exit_code == _NOT_FOUND:
        raise MedFocusError(
            f"job {job.id}: the head finds no command medfocus; install it there, and start Ray with its folder on PATH"
        )
    raise MedFocusError(f"job {job.id} failed: {_first_line(job.message)}; see the log of the dashboard")


def _leave(server: JobServer, id: str, by_signal: bool) -> None:
    """Stop a job or leave it to itself, as the person at the terminal decides.

    Args:
        server: the job server.
        id: the job.
        by_signal: a signal has come that is no person's Ctrl-C: nobody is asked.

    Raises:
        MedFocusError: says what has become of the job.
    """
    if not by_signal and _is_to_stop(id):
        job = server.stop(id)
        raise MedFocusError(f"job {id} is {job.state}; the same command goes on from there")
    raise MedFocusError(f"job {id} goes on; {mend(id)}")


def mend(id: str) -> str:
    """How to follow and how to stop a job that goes on."""
    return f"medfocus jobs {id} --logs follows it, medfocus jobs {id} --stop stops it"


def _is_to_stop(id: str) -> bool:
    """Whether the person at the terminal wants a job to be stopped; without a terminal, nobody does."""
    if not sys.stdin or not sys.stdin.isatty() or not sys.stderr.isatty():
        return False
    print(f"\nstop job {id}? Otherwise it goes on. [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def _show_table(jobs: list[Job]) -> None:
    """Show a line for each job, with a head."""
    cells = [("id", "state", "started", "duration", "command"), *map(_cells, jobs)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    for *row, command in cells:
        show("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), command]))


def _cells(job: Job) -> tuple[str, str, str, str, str]:
    started = "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
    duration = "" if job.seconds is None else str(timedelta(seconds=round(job.seconds)))
    return _shown(job.id), job.state, started, duration, _shown(job.command)


def _record(job: Job) -> dict[str, Any]:
    """A job for JSON; ``started`` is in ISO 8601, UTC."""
    started = None if job.started is None else datetime.fromtimestamp(job.started, UTC).isoformat(timespec="seconds")
    record = asdict(job) | {"started": started, "command": without_credentials(job.command)}
    del record["message"]
    return record


def _shown(text: str) -> str:
    return one_line(without_credentials(text))


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "Ray gives no reason")
