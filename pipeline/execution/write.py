"""Commits the rows of one shard as records of the output: predictions or features, and quarantine."""

from typing import Any

import numpy as np
import pyarrow as pa

from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import Output
from medfocus.pipeline.data.storage import AccessError, StorageError
from medfocus.pipeline.errors import MedFocusError, ShardError
from medfocus.pipeline.execution.job import Provenance
from medfocus.pipeline.isolation.failure import FAILURE
from medfocus.stages.batch import well


def commit_rows(batch: dict[str, np.ndarray], output: Output, provenance: Provenance) -> dict[str, list]:
    """Commit the rows of one shard.

    A shard that cannot be finished, or cannot be written, is not written at all.

    Args:
        batch: rows of the shard after all stages.
        output: output of the run.
        provenance: what produced the rows.

    Returns:
        The summary of the shard, as a batch of one row: the number of its ``rows``, of those ``written`` and of those
        ``quarantined``; ``shard``, its key; ``failure``, why it was not finished (empty if it was); and
        ``permanent``, whether another try would fail too.

    Raises:
        AccessError: storage may not be used at all; the run ends.
    """
    shard, failure = batch["shard"][0], str(batch[FAILURE][0])
    if not failure:
        try:
            return _commit(batch, output, provenance) | {"shard": [shard], FAILURE: [""], "permanent": [False]}
        except AccessError:
            raise
        except StorageError as error:
            failure = str(error)
    counts: dict[str, list] = {"rows": [0], "written": [0], "quarantined": [0]}
    permanent = batch["error"][0] == ShardError.__name__
    return counts | {"shard": [shard], FAILURE: [failure], "permanent": [permanent]}


def _commit(batch: dict[str, np.ndarray], output: Output, provenance: Provenance) -> dict[str, list]:
    """Write the rows of a shard that can be finished; returns their numbers.

    Raises:
        MedFocusError: the block is not one whole shard.
    """
    rows, shards = int(batch["shard_rows"][0]), set(batch["shard"].tolist())
    if len(shards) != 1 or len(batch["image_id"]) != max(rows, 1):
        raise MedFocusError(
            f"a block of {len(batch['image_id'])} rows of {len(shards)} shards reached the commit in place of a shard's"
            f" {rows}; nothing of it was written, the same call goes on from here"
        )
    batch = {name: column[:rows] for name, column in batch.items()}  # a shard without rows has one blank row
    well_rows = well(batch)
    failed_rows = np.setdiff1d(np.arange(rows), well_rows)
    records_of = _predictions if provenance.classes else _features
    output.commit(shards.pop(), records_of(batch, well_rows, provenance), _quarantine(batch, failed_rows))
    return {"rows": [rows], "written": [len(well_rows)], "quarantined": [len(failed_rows)]}


def _or_null(values: np.ndarray) -> list[str | None]:
    return [value or None for value in values.tolist()]


def _identity_columns(batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    return {
        "image_id": batch["image_id"][rows].tolist(),
        "patient_id": _or_null(batch["patient_id"][rows]),
        "site": _or_null(batch["site"][rows]),
        "split": _or_null(batch["split"][rows]),
    }


def _mask_columns(batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    sizes = np.stack([batch["height"][rows], batch["width"][rows]], axis=1).tolist()
    counts = batch["mask_counts"][rows].tolist()
    masks = [{"size": size, "counts": run_lengths} for size, run_lengths in zip(sizes, counts, strict=True)]
    return {"mask": masks, "mask_score": batch["mask_score"][rows]}


def _features(batch: dict[str, np.ndarray], rows: np.ndarray, provenance: Provenance) -> pa.Table:
    region = "region_tokens" in batch
    _, views, tokens, width = batch["tokens"].shape
    schema = records.feature_schema(tokens, width, region, augmented=views - 1)
    columns = _identity_columns(batch, rows) | _mask_columns(batch, rows)
    columns |= {"label": batch["truth"][rows].tolist(), "model_key": [provenance.name] * len(rows)}
    for name in ("tokens", "focus", "region_tokens") if region else ("tokens", "focus"):
        columns[name] = _tensors(batch[name][rows, 0])
        if views > 1:
            columns[records.AUGMENTED + name] = _tensors(batch[name][rows, 1:])
    return pa.table(columns, schema=schema)


def _tensors(values: np.ndarray) -> pa.ExtensionArray:
    """A column of float16 tensors, one for each row; there may be no rows."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float16(), values.shape[1:]), storage)


def _predictions(batch: dict[str, np.ndarray], rows: np.ndarray, provenance: Provenance) -> pa.Table:
    columns = _identity_columns(batch, rows) | _mask_columns(batch, rows)
    columns |= {
        "label": batch["label"][rows].tolist(),
        "probabilities": list(batch["probabilities"][rows]),
        "confidence": batch["confidence"][rows],
        "decision": batch["decision"][rows].tolist(),
        "model_version": [provenance.name] * len(rows),
    }
    return pa.table(columns, schema=records.prediction_schema(provenance.classes))


def _quarantine(batch: dict[str, np.ndarray], rows: np.ndarray) -> pa.Table:
    names = ("image_id", "source_uri", "stage", "error", "message")
    return pa.table({name: batch[name][rows].tolist() for name in names}, schema=records.QUARANTINE)
