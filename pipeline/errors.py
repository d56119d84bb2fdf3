"""Errors a user sees: one line that names the thing and the mend, and the exit code that goes with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class MedFocusError(Exception):
    """The command failed (exit 1)."""

    exit_code = 1


class ShardError(MedFocusError):
    """One shard is not what it should be; another try would find it the same."""


class UsageError(MedFocusError):
    """The call or the configuration is wrong; nothing was started (exit 2)."""

    exit_code = 2


class TooManyQuarantined(MedFocusError):
    """RunSummary, but more rows were quarantined than the configuration allows (exit 3).

    ``result`` is what the command returns when fewer are.
    """

    exit_code = 3

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


@contextmanager
def before_start() -> Iterator[None]:
    """What fails in here fails before anything was started: the call is wrong (exit 2)."""
    try:
        yield
    except MedFocusError as error:
        raise UsageError(str(error)) from error
