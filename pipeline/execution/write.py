"""Writing the rows of one shard as the records of its output."""

from typing import Any

import numpy as np
import pyarrow as pa

from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import Output
from medfocus.pipeline.data.storage import AccessError, StorageError
from medfocus.pipeline.errors import MedFocusError, ShardError
from medfocus.pipeline.execution.block import FAILURE
from medfocus.pipeline.execution.job import Provenance
from medfocus.stages.batch import well


def commit_rows(batch: dict[str, np.ndarray], output: Output, provenance: Provenance) -> dict[str, list]:
    """Write the rows of one shard; returns its summary as a batch of one row.

    A shard that could not be finished is not written, nor is one that cannot be written now; ``failure`` says why, and
    ``lasting`` whether another try would be in vain.

    Raises:
        AccessError: storage may not be used at all.
    """
    shard, failure = batch["shard"][0], str(batch[FAILURE][0])
    if not failure:
        try:
            return _commit(batch, output, provenance) | {"shard": [shard], FAILURE: [""], "lasting": [False]}
        except AccessError:
            raise
        except StorageError as error:
            failure = str(error)
    lasting = batch["error"][0] == ShardError.__name__
    return {"rows": [0], "written": [0], "quarantined": [0], "shard": [shard], FAILURE: [failure], "lasting": [lasting]}


def _commit(batch: dict[str, np.ndarray], output: Output, provenance: Provenance) -> dict[str, list]:
    rows, shards = int(batch["shard_rows"][0]), set(batch["shard"].tolist())
    if len(shards) != 1 or len(batch["image_id"]) != max(rows, 1):
        raise MedFocusError(
            f"a block of {len(batch['image_id'])} rows of {len(shards)} shards reached the commit in place of a shard's"
            f" {rows}; nothing of it was written, the same call goes on from here"
        )
    batch = {name: column[:rows] for name, column in batch.items()}  # without the blank row of a shard of no rows
    good = well(batch)
    bad = np.setdiff1d(np.arange(rows), good)
    table = _predictions(batch, good, provenance) if provenance.classes else _features(batch, good, provenance)
    output.commit(shards.pop(), table, _quarantine(batch, bad))
    return {"rows": [rows], "written": [len(good)], "quarantined": [len(bad)]}


def _or_null(values: np.ndarray) -> list[str | None]:
    return [value or None for value in values.tolist()]


def _who(batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    return {
        "image_id": batch["image_id"][rows].tolist(),
        "patient_id": _or_null(batch["patient_id"][rows]),
        "site": _or_null(batch["site"][rows]),
    }


def _found(batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    sizes = np.stack([batch["height"][rows], batch["width"][rows]], axis=1).tolist()
    counts = batch["mask_counts"][rows].tolist()
    masks = [{"size": size, "counts": code} for size, code in zip(sizes, counts, strict=True)]
    return {"mask": masks, "mask_score": batch["mask_score"][rows]}


def _features(batch: dict[str, np.ndarray], rows: np.ndarray, provenance: Provenance) -> pa.Table:
    region = "region_tokens" in batch
    _, views, tokens, width = batch["tokens"].shape
    schema = records.feature_schema(tokens, width, region, augmented=views - 1)
    columns = _who(batch, rows) | _found(batch, rows)
    columns |= {"label": batch["truth"][rows].tolist(), "model_key": [provenance.name] * len(rows)}
    for name in ("tokens", "focus", "region_tokens") if region else ("tokens", "focus"):
        columns[name] = _tensors(batch[name][rows, 0])
        if views > 1:
            columns[records.AUGMENTED + name] = _tensors(batch[name][rows, 1:])
    return pa.table(columns, schema=schema)


def _tensors(values: np.ndarray) -> pa.ExtensionArray:
    """Rows of tensors of one shape, none of them included."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float16(), values.shape[1:]), storage)


def _predictions(batch: dict[str, np.ndarray], rows: np.ndarray, provenance: Provenance) -> pa.Table:
    columns = _who(batch, rows) | _found(batch, rows)
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
