"""A small archive with known predictions and labels, written as ``score`` and ``pack`` write them."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import PREDICTIONS, Output
from medfocus.pipeline.data.manifest import Manifest, ShardEntry, write_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.evaluation.metrics import EvaluationSet
from medfocus.pipeline.evaluation.predictions import evaluation_set, read_predictions
from medfocus.pipeline.evaluation.truth import read_truth

CLASSES = ("cyst", "ring lesion", "solid mass")


def draw_rows(rows: int = 90, seed: int = 0) -> list[dict[str, Any]]:
    """Predictions with their ``truth``: three images a patient, two sites and some rows without one."""
    random = np.random.default_rng(seed)
    archive = []
    for row in range(rows):
        truth = int(random.integers(3))
        logits = random.normal(size=3) + 1.5 * np.eye(3)[truth]
        probabilities = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
        archive.append(
            {
                "image_id": f"image-{row}.png",
                "patient_id": f"PATIENT-{row // 3}",
                "site": (None, "north", "south")[row % 3],
                "split": "test",
                "label": CLASSES[int(probabilities.argmax())],
                "probabilities": probabilities.tolist(),
                "confidence": float(probabilities.max()),
                "decision": "accept" if probabilities.max() > 0.6 else "refer",
                "mask": {"size": [1, 1], "counts": "1"},
                "mask_score": 0.5,
                "model_version": "lesions/1",
                "truth": CLASSES[truth],
            }
        )
    return archive


def write_predictions(
    out: str,
    files: Sequence[Sequence[dict[str, Any]]],
    classes: Sequence[Sequence[str]] | None = None,
    quarantined: int = 0,
    finished: bool = True,
) -> Output:
    """Write the output of ``score``: a file for each list of rows, ``quarantined`` rows beside the first."""
    output = Output(locate(out, StorageSection()), PREDICTIONS)
    shards = [
        ShardEntry(f"{index}.parquet", len(rows), 1, hashlib.sha256(f"{index}".encode()).hexdigest())
        for index, rows in enumerate(files)
    ]
    output.begin({}, Manifest(tuple(shards)))
    for index, (shard, rows) in enumerate(zip(shards, files, strict=True)):
        schema = records.prediction_schema(classes[index] if classes else CLASSES)
        quarantine = [
            {"image_id": f"bad-{row}", "source_uri": "x", "stage": "decode", "error": "EmptyImage", "message": "empty"}
            for row in range(quarantined if index == 0 else 0)
        ]
        predictions = [{name: row[name] for name in schema.names} for row in rows]
        output.commit(
            shard.key,
            pa.Table.from_pylist(predictions, schema=schema),
            pa.Table.from_pylist(quarantine, schema=records.QUARANTINE),
        )
    output.update(finished=finished)
    return output


def rewrite_last(output: Output, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the last file of predictions."""
    file = output.rows / output.rows.files()[-1]
    file.write(records.encode(change(pq.read_table(pa.BufferReader(file.read())))))


def write_csv(path: Path, rows: Sequence[dict[str, Any]], column: str = "image_id") -> str:
    """Write the labels of the rows to a label file; returns its path."""
    path.write_text(f"{column},label\n" + "".join(f"{row['image_id']},{row['truth']}\n" for row in rows))
    return str(path)


def write_shards(prefix: str, rows: Sequence[dict[str, Any]]) -> str:
    """Write two labelled shards, whose images are no images: evaluation must not read them."""
    entries = []
    for index, part in enumerate((rows[:40], rows[40:])):
        columns = {
            "image_id": [row["image_id"] for row in part],
            "label": [row["truth"] for row in part],
            "split": [row["split"] for row in part],
            "image": [b"?"] * len(part),
            "media_type": ["image/png"] * len(part),
            "source_uri": ["x"] * len(part),
            "sha256": ["x"] * len(part),
        }
        content = records.encode(records.shard_table(columns))
        name = f"shard-{index}.parquet"
        (locate(prefix, StorageSection()) / name).write(content)
        entries.append(ShardEntry(name, len(part), len(content), hashlib.sha256(content).hexdigest()))
    write_manifest(locate(prefix, StorageSection()), entries)
    return prefix


def join(out: str, labels: str) -> EvaluationSet:
    """The predictions with their labels, as ``evaluate`` joins them."""
    rows = Output(locate(out, StorageSection()), PREDICTIONS).rows
    truth = read_truth(locate(labels, StorageSection()), rows)
    files, classes, _ = read_predictions(rows, truth)
    return evaluation_set(files, classes, truth, rows.uri)[0]


def join_error(out: str, labels: str) -> str:
    """The message, which must be one line, of the UsageError that joining predictions and labels raises."""
    with pytest.raises(UsageError) as caught:
        join(out, labels)
    message = str(caught.value)
    assert "\n" not in message
    return message
