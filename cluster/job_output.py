"""What a job prints: its results told apart from its log, and by which versions it was submitted.

The job server keeps stdout and stderr of a job in one file. A variable in the environment of the job says that results
are to be marked. It also holds the versions of the packages of the machine that has submitted the job.
"""

import os
from importlib.metadata import version

VARIABLE = "MEDFOCUS_JOB"
_MARK = "RESULT "
_PACKAGES = ("medfocus", "ray")


def description() -> str:
    """The value of the variable: the versions of this machine's packages."""
    return ", ".join(f"{name} {version(name)}" for name in _PACKAGES)


def marked(text: str) -> str:
    """Lines of a result as they are printed here: with a mark in a job, else unchanged."""
    if VARIABLE not in os.environ:
        return text
    return "\n".join(f"{_MARK}{line}" for line in text.split("\n"))


def result_line(line: str) -> str | None:
    """A line of a result without its mark; None for another line of a job's log."""
    return line.removeprefix(_MARK) if line.startswith(_MARK) else None


def version_differences() -> list[str]:
    """For each package of another version than on the submitting machine, a line; none outside of a job."""
    if VARIABLE not in os.environ:
        return []
    submitted = dict(item.split(" ", 1) for item in os.environ[VARIABLE].split(", ") if " " in item)
    here = {name: version(name) for name in _PACKAGES}
    return [
        f"{name} {submitted[name]} has submitted this job, and {here[name]} runs it"
        for name in _PACKAGES
        if submitted.get(name, here[name]) != here[name]
    ]
