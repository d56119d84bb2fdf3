"""MedFocus: archives of medical images to scored, explained results. Research software, not for clinical use.

The functions ``pack``, ``embed``, ``train``, ``score``, ``evaluate`` and ``quarantine`` do what the commands of these
names do; ``Config`` and ``load_config`` give their configuration.

This package is the one name that the code is imported by. ``medfocus.pipeline``, ``medfocus.stages``,
``medfocus.cluster`` and ``medfocus.starter`` are links to the folders of these names at the root of the repository.
Ray puts the folder that a command is called in before the installed packages of its workers, and many data projects
have a folder ``pipeline/`` or ``stages/``. Under bare names theirs would be imported in place of ours.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medfocus.pipeline.api import embed, evaluate, pack, quarantine, score, train
    from medfocus.pipeline.config import Config, load_config
    from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined, UsageError

__all__ = [
    "Config",
    "MedFocusError",
    "TooManyQuarantined",
    "UsageError",
    "embed",
    "evaluate",
    "load_config",
    "pack",
    "quarantine",
    "score",
    "train",
]

# Imported when they are first asked for: a worker that needs a stage does without the rest.
_MODULES = {
    "medfocus.pipeline.config": ("Config", "load_config"),
    "medfocus.pipeline.errors": ("MedFocusError", "TooManyQuarantined", "UsageError"),
    "medfocus.pipeline.api": ("embed", "evaluate", "pack", "quarantine", "score", "train"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
