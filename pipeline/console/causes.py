"""What a person should read of an error that has come through Ray, or that was not foreseen."""

import re
from collections.abc import Iterator

from medfocus.pipeline.console.logs import one_line, without_codes
from medfocus.pipeline.errors import MedFocusError

_OURS = ("medfocus",)
# Where Ray's errors keep the error that they tell of.
_INNER = ("cause", "controller_failure", "_base_exc")
# What Ray says, by its class, of processes and data that are gone; it says it in many lines, with process ids.
_GONE = {
    "OutOfMemoryError": "memory ran out on a node",
    "NodeDiedError": "a node of the cluster died",
    "ObjectLostError": "data that a node of the cluster held is lost",
    "RayActorError": "a worker process died, most often for lack of memory",
    "WorkerCrashedError": "a worker process died, most often for lack of memory",
}
# The line of a printed trace that names the error; all lines of the calls above it are indented.
_NAMED = re.compile(r"^(?P<module>(?:\w+\.)*)(?P<name>[A-Za-z_]\w*): (?P<message>.*)$", re.MULTILINE)
_LONGEST = 300


def own_error(error: BaseException) -> MedFocusError | None:
    """The error of MedFocus that an error is or tells of, as one line; None where there is none."""
    for cause in _chain(error):
        if isinstance(cause, MedFocusError) and _inner(cause) is None:
            # To what comes through Ray, Ray Data adds lines about its retries.
            found = MedFocusError(one_line(str(cause)) if cause is error else _first_line(str(cause)))
            found.exit_code = cause.exit_code
            return found
    said = _named_by_text(error)
    return MedFocusError(said["message"]) if said and _is_ours(said["module"]) else None


def reason(error: BaseException) -> str:
    """The true cause of an error in one line: no code of a terminal, no process id, no class of MedFocus or Ray."""
    own = own_error(error)
    if own is not None:
        return str(own)
    cause = error
    while (inner := _inner(cause)) is not None:
        cause = inner
    if said := _named_by_text(cause):
        return _described(said["module"], said["name"], said["message"])
    for kind in type(cause).__mro__:
        if kind.__module__.startswith("ray.") and kind.__name__ in _GONE:
            return _GONE[kind.__name__]
    return _described(f"{type(cause).__module__}.", type(cause).__name__, _first_line(str(cause)))


def _described(module: str, name: str, message: str) -> str:
    hidden = _is_ours(module) or module.startswith("ray.")
    text = message if hidden and message else f"{name}: {message}" if message else name
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = _inner(error) or error.__cause__


def _inner(error: BaseException) -> BaseException | None:
    """The error that one of Ray's tells of, of the first training process where several failed."""
    if not any(kind.__module__.startswith("ray.") for kind in type(error).__mro__):
        return None
    for name in _INNER:
        if isinstance(found := getattr(error, name, None), BaseException):
            return found
    failures = getattr(error, "worker_failures", None)
    return failures[min(failures)] if failures else None


def _named_by_text(error: BaseException) -> re.Match[str] | None:
    """The error that one of Ray's tells of only as a printed trace, as of an actor that could not begin."""
    text = without_codes(str(error))
    if not type(error).__module__.startswith("ray.") or "  File " not in text:
        return None
    return next(reversed(list(_NAMED.finditer(text))), None)


def _first_line(text: str) -> str:
    return one_line(next((line for line in text.splitlines() if line.strip()), ""))
