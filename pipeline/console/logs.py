"""What a person reads: results on stdout, logs on stderr, one structured line an event, and progress to watch."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.errors import MedFocusError

log = logging.getLogger("medfocus")
_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_FIGURES = 30.0, 10.0
# Colours and cursor movements of a terminal, and control characters beside them.
_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LINE_END = re.compile(r"\s*[\r\n\x85\u2028\u2029]\s*")
# Where results go while what libraries print is kept off; None: to stdout.
_results: TextIO | None = None


class _Structured(logging.Formatter):
    """``12:00:01 INFO message key=value``; fields come from ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = one_line(f"{record.getMessage()} {fields}".rstrip())
        return f"{moment} {record.levelname} {without_credentials(text)}"


def configure() -> None:
    """Send MedFocus's own lines to stderr from INFO on, and other libraries' from ERROR on.

    What stdout and stderr cannot encode, as letters of a class in a terminal of another language, is escaped. A stream
    that the caller has closed takes what is written and drops it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Structured())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    log.setLevel(logging.INFO)


def without_codes(text: str) -> str:
    """A text without a terminal's colours and cursor movements; other control characters are escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), _ESCAPE_CODE.sub("", text))


def one_line(text: str) -> str:
    """A text as one line without codes; blanks within its lines stay, they may be what is wrong with a name."""
    return _LINE_END.sub(" ", without_codes(text.strip("\r\n")))


def show(text: str) -> None:
    """Print lines of a command's result on stdout; where the reader has left, as ``head`` does, they are dropped.

    Raises:
        MedFocusError: stdout cannot be written.
    """
    stream = _results or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        _discard(stream)
        if not isinstance(error, BrokenPipeError):
            raise MedFocusError(
                f"the result cannot be written to stdout ({error.strerror}); see that it can be and start again"
            ) from error


def flush() -> None:
    """Write out what stdout and stderr hold, so that a reader that has left is no error when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # show has told of it, or nobody reads what would tell
            _discard(stream)


def _discard(stream: TextIO) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


@contextmanager
def only_results() -> Iterator[None]:
    """Keep stdout for ``show``: what libraries print meanwhile, as MLflow its links and Ray its traces, is dropped.

    What fails in a library is raised; what it prints beside that is no result, and may hold a server's password.
    """
    global _results
    before, _results = _results, sys.stdout
    try:
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
            yield
    finally:
        _results = before


def event(message: str, **fields: Any) -> None:
    """Log what happened with its fields; floats are shown to four digits."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in fields.items()}
    log.info(message, extra={"fields": shown})


class Progress:
    """Rows done of all: a bar on a terminal, else a line now and then; and figures now and then for who follows."""

    def __init__(self, what: str, total: int, done: int, follow: Callable[[dict[str, float]], None]):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.quarantined, self.follow = 0, follow
        self.started = self.last_line = self.last_figures = time.monotonic()
        self.bar = tqdm(
            total=total, initial=done, desc=what, unit="img", file=sys.stderr, disable=not sys.stderr.isatty()
        )

    def add(self, rows: int, quarantined: int) -> None:
        """Some more rows are done, of which so many are quarantined."""
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
        """Rows done of all, how many this call has quarantined, its speed, and the seconds that are left."""
        return {
            "rows_done": self.done,
            "rows_total": self.total,
            "rows_quarantined": self.quarantined,
            "images_per_second_now": self.images_per_second(),
            "seconds_left": round(self.seconds_left()),
        }

    def images_per_second(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def seconds_left(self) -> float:
        return (self.total - self.done) / max(self.images_per_second(), 1e-9)


@contextmanager
def progress(what: str, total: int, done: int, follow: Callable[[dict[str, float]], None]) -> Iterator[Progress]:
    """Progress of a command over ``total`` rows of which ``done`` were finished before it began; ``follow`` is told."""
    shown = Progress(what, total, done, follow)
    try:
        yield shown
    finally:
        shown.bar.close()
