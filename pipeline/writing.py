"""Writing the rows of one shard as the records of its output."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import records
from pipeline.commit import Output
from pipeline.errors import MedFocusError
from stages.batch import well


@dataclass(frozen=True)
class Version:
    """What made the rows: a model version and its classes, or, for features, the ``model_key`` and no classes."""

    name: str
    classes: tuple[str, ...] = ()


def commit_rows(batch: dict[str, np.ndarray], output: Output, version: Version) -> dict[str, list[int]]:
    """Write the rows of one shard; returns its summary as a batch of one row."""
    rows = len(batch["image_id"])
    shards = set(batch["shard"].tolist())
    if len(shards) != 1 or rows != batch["shard_rows"][0]:
        raise MedFocusError(f"a block of {rows} rows of {len(shards)} shards reached the commit; please report this")
    good = well(batch)
    bad = np.setdiff1d(np.arange(rows), good)
    table = _predictions(batch, good, version) if version.classes else _features(batch, good, version)
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


def _features(batch: dict[str, np.ndarray], rows: np.ndarray, version: Version) -> pa.Table:
    region = "region_tokens" in batch
    _, views, tokens, width = batch["tokens"].shape
    schema = records.feature_schema(views, tokens, width, region)
    columns = _who(batch, rows) | _found(batch, rows)
    columns |= {"label": batch["truth"][rows].tolist(), "model_key": [version.name] * len(rows)}
    for name in ("tokens", "focus", "region_tokens") if region else ("tokens", "focus"):
        flat = pa.array(np.ascontiguousarray(batch[name][rows]).reshape(-1))
        storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(batch[name].shape[1:])))
        columns[name] = pa.ExtensionArray.from_storage(schema.field(name).type, storage)
    return pa.table(columns, schema=schema)


def _predictions(batch: dict[str, np.ndarray], rows: np.ndarray, version: Version) -> pa.Table:
    columns = _who(batch, rows) | _found(batch, rows)
    columns |= {
        "label": batch["label"][rows].tolist(),
        "probabilities": list(batch["probabilities"][rows]),
        "confidence": batch["confidence"][rows],
        "decision": batch["decision"][rows].tolist(),
        "model_version": [version.name] * len(rows),
    }
    return pa.table(columns, schema=records.prediction_schema(version.classes))


def _quarantine(batch: dict[str, np.ndarray], rows: np.ndarray) -> pa.Table:
    names = ("image_id", "source_uri", "stage", "error", "message")
    return pa.table({name: batch[name][rows].tolist() for name in names}, schema=records.QUARANTINE)
