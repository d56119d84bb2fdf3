"""The cause of an error in one line, for errors that have come through Ray and for unforeseen ones."""

import re
from collections.abc import Iterator

from medfocus.pipeline.console.logs import one_line, without_codes
from medfocus.pipeline.errors import MedFocusError

_OURS = ("medfocus",)
# Attributes in which Ray's errors keep the error that caused them.
_INNER = ("cause", "controller_failure", "_base_exc")
# Ray's errors for lost processes and data, by class; their own texts have many lines, with process ids.
_LOST = {
    "OutOfMemoryError": "memory ran out on a node",
    "NodeDiedError": "a node of the cluster died",
    "ObjectLostError": "data that a node of the cluster held is lost",
    "RayActorError": "a worker process died, most often for lack of memory",
    "WorkerCrashedError": "a worker process died, most often for lack of memory",
}
# The line of a printed trace that names the error; the lines of the calls above it are indented.
_ERROR_LINE = re.compile(r"^(?P<module>(?:\w+\.)*)(?P<name>[A-Za-z_]\w*): (?P<message>.*)$", re.MULTILINE)
_LONGEST = 300


def own_error(error: BaseException) -> MedFocusError | None:
    """The error of MedFocus that an error is or was caused by, as one line; None where there is none."""
    for cause in _chain(error):
        if isinstance(cause, MedFocusError) and _inner(cause) is None:
            # Ray Data adds lines about its retries to the text of an error.
            own = MedFocusError(one_line(str(cause)) if cause is error else _first_line(str(cause)))
            own.exit_code = cause.exit_code
            return own
    line = _error_line(error)
    return MedFocusError(line["message"]) if line and _is_ours(line["module"]) else None


def reason(error: BaseException) -> str:
    """The first cause of an error in one line, without terminal codes, process ids, and classes of MedFocus or Ray."""
    own = own_error(error)
    if own is not None:
        return str(own)
    cause = error
    while (inner := _inner(cause)) is not None:
        cause = inner
    if line := _error_line(cause):
        return _description(line["module"], line["name"], line["message"])
    for kind in type(cause).__mro__:
        if kind.__module__.startswith("ray.") and kind.__name__ in _LOST:
            return _LOST[kind.__name__]
    return _description(f"{type(cause).__module__}.", type(cause).__name__, _first_line(str(cause)))


def _description(module: str, name: str, message: str) -> str:
    """The message of an error, behind the name of its class where that says something to a user."""
    hidden = _is_ours(module) or module.startswith("ray.")
    text = message if hidden and message else f"{name}: {message}" if message else name
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the first cause last."""
    while error is not None:
        yield error
        error = _inner(error) or error.__cause__


def _inner(error: BaseException) -> BaseException | None:
    """The error that caused one of Ray's; where several training processes failed, that of the first."""
    if not any(kind.__module__.startswith("ray.") for kind in type(error).__mro__):
        return None
    for name in _INNER:
        if isinstance(inner := getattr(error, name, None), BaseException):
            return inner
    failures = getattr(error, "worker_failures", None)
    return failures[min(failures)] if failures else None


def _error_line(error: BaseException) -> re.Match[str] | None:
    """The line that names the cause in the printed trace of one of Ray's errors, as of an actor that cannot start."""
    text = without_codes(str(error))
    if not type(error).__module__.startswith("ray.") or "  File " not in text:
        return None
    return next(reversed(list(_ERROR_LINE.finditer(text))), None)


def _first_line(text: str) -> str:
    return one_line(next((line for line in text.splitlines() if line.strip()), ""))
