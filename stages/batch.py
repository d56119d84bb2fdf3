"""What a batch carries between stages beside its data: which rows have failed, where and why.

A row that fails is never dropped: it keeps its place with ``stage``, ``error`` (class) and ``message`` set, and
later stages pass it by. An empty ``error`` means that the row is well.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Batch = dict[str, Any]


def start(batch: Mapping[str, Any]) -> Batch:
    """A copy of the batch (arrays shared) whose rows are all well, but for those that have failed already."""
    if "error" in batch:
        return writable(batch)
    rows = len(batch["image_id"])
    return {**batch, **{name: np.full(rows, "", dtype=object) for name in ("stage", "error", "message")}}


def well(batch: Mapping[str, Any]) -> np.ndarray:
    """Indices (int64) of the rows that have not failed."""
    return np.flatnonzero(np.asarray(batch["error"]) == "")


def fail(batch: Batch, row: int, stage: str, error: str, message: str) -> None:
    """Mark one row as failed at a stage; ``message`` becomes one line of at most 300 characters."""
    batch["stage"][row] = stage
    batch["error"][row] = error
    batch["message"][row] = " ".join(message.split())[:300]


def writable(batch: Mapping[str, Any]) -> Batch:
    """A copy of the batch whose failure columns may be written: arrays that come from Arrow may not."""
    return {**batch, **{name: np.array(batch[name], dtype=object) for name in ("stage", "error", "message")}}
