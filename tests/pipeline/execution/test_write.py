from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import FEATURES, PREDICTIONS, Output, part_name
from medfocus.pipeline.data.storage import AccessError, Location, StorageError, locate
from medfocus.pipeline.errors import MedFocusError, ShardError
from medfocus.pipeline.execution.block import blank_row
from medfocus.pipeline.execution.job import Provenance
from medfocus.pipeline.execution.write import commit_rows
from medfocus.pipeline.isolation.failure import FAILURE, fail_shard
from medfocus.stages.batch import fail, start

DIGEST = "5" * 64
MODEL = Provenance("models:/m/1", ("a", "b"))


def block(count: int) -> dict[str, Any]:
    """Rows of a shard after all stages, for predictions and for features of five tokens of width three."""
    text = {name: np.full(count, "", object) for name in ("patient_id", "site", "split", FAILURE)}
    tokens = np.arange(count * 2 * 5 * 3, dtype=np.float16).reshape(count, 2, 5, 3)
    rows = text | {
        "image_id": np.array([f"{row}.png" for row in range(count)], object),
        "source_uri": np.array([f"in/{row}.png" for row in range(count)], object),
        "truth": np.full(count, "b", object),
        "label": np.full(count, "a", object),
        "probabilities": np.tile(np.float32([0.75, 0.25]), (count, 1)),
        "confidence": np.full(count, 0.75, np.float32),
        "decision": np.full(count, "accept", object),
        "height": np.full(count, 8, np.int32),
        "width": np.full(count, 6, np.int32),
        "mask_counts": np.full(count, "04", object),
        "mask_score": np.full(count, 0.5, np.float32),
        "tokens": tokens,
        "focus": tokens[..., 1:, 0],
        "shard": np.full(count, DIGEST, object),
        "shard_rows": np.full(count, count),
    }
    return start(rows)


def output(folder: Path, kind: str = PREDICTIONS) -> Output:
    return Output(locate(str(folder), StorageSection()), kind)


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / kind / part_name(DIGEST)).to_pylist()


def test_each_row_is_in_exactly_one_of_predictions_and_quarantine(tmp_path: Path) -> None:
    rows = block(3)
    rows["patient_id"][0], rows["split"][0] = "P1", "test"
    fail(rows, 1, "decode", "Truncated", "the file ends early")
    summary = commit_rows(rows, output(tmp_path), MODEL)
    counts = {"rows": [3], "written": [2], "quarantined": [1]}
    assert summary == counts | {"shard": [DIGEST], FAILURE: [""], "permanent": [False]}
    first, second = read(tmp_path, "predictions")
    assert first == {
        "image_id": "0.png",
        "patient_id": "P1",
        "site": None,
        "split": "test",
        "label": "a",
        "probabilities": [0.75, 0.25],
        "confidence": 0.75,
        "decision": "accept",
        "mask": {"size": [8, 6], "counts": "04"},
        "mask_score": 0.5,
        "model_version": "models:/m/1",
    }
    assert second["image_id"] == "2.png" and second["patient_id"] is None
    quarantined = {"stage": "decode", "error": "Truncated", "message": "the file ends early"}
    assert read(tmp_path, "quarantine") == [{"image_id": "1.png", "source_uri": "in/1.png", **quarantined}]


def test_features_have_the_true_label_and_augmented_views_apart(tmp_path: Path) -> None:
    rows = block(2)
    summary = commit_rows(rows, output(tmp_path, FEATURES), Provenance("key"))
    assert (summary["written"], summary["quarantined"]) == ([2], [0])
    table = pq.read_table(tmp_path / "features" / part_name(DIGEST))
    assert table.schema.equals(records.feature_schema(5, 3, region=False, augmented=1))
    assert table["label"].to_pylist() == ["b", "b"] and table["model_key"].to_pylist() == ["key", "key"]
    for name, values in (("tokens", rows["tokens"]), ("focus", rows["focus"])):
        assert np.array_equal(table[name].combine_chunks().to_numpy_ndarray(), values[:, 0])
        augmented = table[records.AUGMENTED + name].combine_chunks().to_numpy_ndarray()
        assert np.array_equal(augmented, values[:, 1:])
    assert not (tmp_path / "quarantine").exists()


def test_the_blank_row_of_a_shard_without_rows_is_not_written(tmp_path: Path) -> None:
    rows = {name: column[:1] for name, column in block(1).items()} | {"shard_rows": np.zeros(1, int)}
    fail(rows, 0, "read", "NoLabel", "no row of the shard has a label")
    assert commit_rows(rows, output(tmp_path), MODEL)["rows"] == [0]
    assert read(tmp_path, "predictions") == [] and not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize(("error", "permanent"), [(StorageError("slow"), False), (ShardError("changed"), True)])
def test_a_shard_that_failed_is_not_written(tmp_path: Path, error: MedFocusError, permanent: bool) -> None:
    rows = fail_shard(blank_row(), "read", error) | {"shard": np.array([DIGEST], object), "shard_rows": np.ones(1, int)}
    summary = commit_rows(rows, output(tmp_path), MODEL)
    counts = {"rows": [0], "written": [0], "quarantined": [0]}
    assert summary == counts | {"shard": [DIGEST], FAILURE: [str(error)], "permanent": [permanent]}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["split", "joined"])
def test_a_block_that_is_not_one_whole_shard_is_not_written(tmp_path: Path, change: str) -> None:
    rows = block(3)
    if change == "split":
        rows = {name: column[:2] for name, column in rows.items()}
    else:
        rows["shard"][2] = "6" * 64
    with pytest.raises(MedFocusError, match="reached the commit in place of a shard's 3; nothing of it was written"):
        commit_rows(rows, output(tmp_path), MODEL)
    assert list(tmp_path.iterdir()) == []


class FailingLocation(Location):
    """A place that cannot be written."""

    error: StorageError

    def __truediv__(self, name: str) -> "FailingLocation":
        below = super().__truediv__(name)
        return FailingLocation(below.store, below.path, below.uri)

    def write(self, content: bytes) -> None:
        raise FailingLocation.error


@pytest.mark.parametrize("error", [StorageError("the disk is full"), AccessError("access denied")])
def test_storage_that_cannot_be_written_fails_the_shard_or_ends_the_run(tmp_path: Path, error: StorageError) -> None:
    FailingLocation.error = error
    place = locate(str(tmp_path), StorageSection())
    failing = Output(FailingLocation(place.store, place.path, place.uri), PREDICTIONS)
    if isinstance(error, AccessError):
        with pytest.raises(AccessError):
            commit_rows(block(2), failing, MODEL)
    else:
        summary = commit_rows(block(2), failing, MODEL)
        assert summary[FAILURE] == ["the disk is full"] and summary["permanent"] == [False]
        assert summary["written"] == [0]
