"""What a person reads: results on stdout; logs on stderr, one line an event; and the progress of a command."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from medfocus.cluster.job_output import marked
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.errors import MedFocusError

log = logging.getLogger("medfocus")
_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_FIGURES = 30.0, 10.0
# Colours and cursor movements of a terminal, and control characters beside them.
_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LINE_END = re.compile(r"\s*[\r\n\x85\u2028\u2029]\s*")
# Where results go while the prints of libraries are dropped; None means stdout.
_results: TextIO | None = None


class _LineFormatter(logging.Formatter):
    """``12:00:01 INFO message key=value``; fields come from ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = one_line(f"{record.getMessage()} {fields}".rstrip())
        return f"{moment} {record.levelname} {without_credentials(text)}"


class Verbosity(Enum):
    """How much of the log is shown: the least level of MedFocus's own lines, and that of other libraries'."""

    QUIET = logging.ERROR, logging.ERROR
    NORMAL = logging.INFO, logging.ERROR
    VERBOSE = logging.DEBUG, logging.INFO


def configure(verbosity: Verbosity = Verbosity.NORMAL) -> None:
    """Set up the process of a command: its streams and its logging. The command line alone calls this.

    All lines go to stderr. Characters that stdout or stderr cannot encode are escaped, as letters of a class in a
    terminal of another language. A stream that the caller has closed takes what is written and drops it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    own, others = verbosity.value
    log.setLevel(own)
    root.setLevel(others)


def without_codes(text: str) -> str:
    """A text without a terminal's colours and cursor movements; other control characters are escaped."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), _ESCAPE_CODE.sub("", text))


def one_line(text: str) -> str:
    """A text as one line without codes. Blanks within its lines stay: they may be what is wrong with a name."""
    return _LINE_END.sub(" ", without_codes(text.strip("\r\n")))


def show(text: str) -> None:
    """Print lines of a command's result on stdout. Where the reader has left, as ``head`` does, they are dropped.

    Args:
        text: one line or several, without the last line end.

    Raises:
        MedFocusError: stdout cannot be written.
    """
    stream = _results or sys.stdout
    try:
        print(marked(text), file=stream, flush=True)
    except OSError as error:
        _discard(stream)
        if not isinstance(error, BrokenPipeError):
            raise MedFocusError(
                f"the result cannot be written to stdout ({error.strerror}); see that it can be and start again"
            ) from error


def pass_on(text: str) -> None:
    """Print a line of another process's log on stderr. Where nobody can read it, it is dropped, as log lines are."""
    with suppress(OSError):
        print(without_credentials(without_codes(text)), file=sys.stderr, flush=True)


def flush() -> None:
    """Write out what stdout and stderr hold, so that a reader that has left is no error when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # show has raised it, or there is no reader
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send what is still written to a stream to the null device."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, stream.fileno())
    os.close(null_device)


@contextmanager
def only_results() -> Iterator[None]:
    """Keep stdout for ``show``, and drop what libraries print, as MLflow its links and Ray its traces.

    A failure in a library is raised. What a library prints is no part of the result, and may hold a server's password.
    The command line alone calls this.
    """
    global _results
    before, _results = _results, sys.stdout
    try:
        with Path(os.devnull).open("w") as null_device, redirect_stdout(null_device):
            yield
    finally:
        _results = before


def event(message: str, **fields: Any) -> None:
    """Log an event with its fields; floats have four digits."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in fields.items()}
    log.info(message, extra={"fields": texts})


class Progress:
    """Progress of a command over rows: a bar on a terminal, else a log line now and then.

    Args:
        what: name of the command.
        total: rows in all.
        done: rows that an earlier call has finished.
        follow: is called with ``figures()`` every few seconds.
    """

    def __init__(self, what: str, total: int, done: int, follow: Callable[[dict[str, float]], None]):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.quarantined, self.follow = 0, follow
        self.started = self.last_line = self.last_figures = time.monotonic()
        hidden = not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO)
        self.bar = tqdm(total=total, initial=done, desc=what, unit="img", file=sys.stderr, disable=hidden)

    def add(self, rows: int, quarantined: int) -> None:
        """Count rows that are finished now.

        Args:
            rows: number of rows.
            quarantined: how many of them are in quarantine.
        """
        self.done, self.quarantined = self.done + rows, self.quarantined + quarantined
        self.bar.update(rows)
        self.bar.set_postfix(quarantined=self.quarantined, refresh=False)
        now = time.monotonic()
        if self.bar.disable and now - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = now
            event(f"{self.what} goes on", **self.figures())
        if now - self.last_figures > _SECONDS_BETWEEN_FIGURES:
            self.last_figures = now
            self.follow(self.figures())

    def figures(self) -> dict[str, float]:
        """Rows finished of all, rows that this call has quarantined, the speed, and the seconds that are left."""
        return {
            "rows_done": self.done,
            "rows_total": self.total,
            "rows_quarantined": self.quarantined,
            "images_per_second_now": self.images_per_second(),
            "seconds_left": round(self.seconds_left()),
        }

    def images_per_second(self) -> float:
        """Speed of this call, without the rows of an earlier one."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def seconds_left(self) -> float:
        """Estimate of the seconds until all rows are finished, at the speed so far."""
        return (self.total - self.done) / max(self.images_per_second(), 1e-9)


@contextmanager
def progress(what: str, total: int, done: int, follow: Callable[[dict[str, float]], None]) -> Iterator[Progress]:
    """Show the ``Progress`` of a command, with its arguments, until the block ends."""
    counter = Progress(what, total, done, follow)
    try:
        yield counter
    finally:
        counter.bar.close()
