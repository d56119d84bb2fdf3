"""The failure columns of a batch: which rows have failed, at which stage and why.

A stage never drops a row that fails. The row keeps its place, its columns ``stage``, ``error`` (the error class) and
``message`` are set, and later stages skip it. An empty ``error`` means that the row has not failed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Batch = dict[str, Any]
"""Columns by name: arrays of one length. ``image_id`` is always there; the failure columns are str [N] objects."""


def start(batch: Mapping[str, Any]) -> Batch:
    """Add empty failure columns to a batch, unless it has them already.

    Args:
        batch: columns by name, with ``image_id`` [N].

    Returns:
        A copy that shares the data columns; its failure columns may be written.
    """
    if "error" in batch:
        return writable(batch)
    rows = len(batch["image_id"])
    return {**batch, **{name: np.full(rows, "", dtype=object) for name in ("stage", "error", "message")}}


def well(batch: Mapping[str, Any]) -> np.ndarray:
    """Indices, int64 [M], of the rows that have not failed."""
    return np.flatnonzero(np.asarray(batch["error"]) == "")


def fail(batch: Batch, row: int, stage: str, error: str, message: str) -> None:
    """Mark one row as failed.

    Args:
        batch: the batch, with failure columns that may be written; changed in place.
        row: index of the row.
        stage: name of the stage that failed, such as ``decode``.
        error: error class, such as ``Undecodable``.
        message: reason in words; it is stored as one line of at most 300 characters.
    """
    batch["stage"][row] = stage
    batch["error"][row] = error
    batch["message"][row] = " ".join(message.split())[:300]


def writable(batch: Mapping[str, Any]) -> Batch:
    """A copy of the batch whose failure columns may be written; arrays that Arrow made are read-only."""
    return {**batch, **{name: np.array(batch[name], dtype=object) for name in ("stage", "error", "message")}}
