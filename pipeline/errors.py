"""Errors that a user sees. Each is one line that names the thing and the mend, and has an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medfocus.cluster.errors import ClusterError


class MedFocusError(Exception):
    """The command failed (exit 1)."""

    exit_code = 1


class ShardError(MedFocusError):
    """A shard is damaged or is not a shard: a permanent error, which no retry would mend."""


class UsageError(MedFocusError):
    """The call or the configuration is wrong; nothing was started (exit 2)."""

    exit_code = 2


class TooManyQuarantined(MedFocusError):
    """The command is done, but more rows are in quarantine than the configuration allows (exit 3).

    Args:
        message: one line for the user.
        result: what the command returns when fewer rows are in quarantine.
    """

    exit_code = 3

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


@contextmanager
def before_start() -> Iterator[None]:
    """Turn errors into ``UsageError``: what fails in the block fails before anything was started (exit 2)."""
    try:
        yield
    except (MedFocusError, ClusterError) as error:
        raise UsageError(str(error)) from error
