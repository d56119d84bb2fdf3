"""Logs on stderr, one structured line an event, and progress a person can watch."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

log = logging.getLogger("medfocus")
_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_FIGURES = 30.0, 10.0


class _Structured(logging.Formatter):
    """``12:00:01 INFO message key=value``; fields come from ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{moment} {record.levelname} {record.getMessage()} {fields}".rstrip()


def configure() -> None:
    """Send MedFocus's own lines to stderr from INFO on, and other libraries' from ERROR on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Structured())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    log.setLevel(logging.INFO)


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
