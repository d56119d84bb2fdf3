import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import AccessError, Location, StorageError, locate
from medfocus.pipeline.errors import ShardError
from medfocus.pipeline.execution import decode
from medfocus.pipeline.execution.decode import read_and_decode
from medfocus.pipeline.execution.read import block_of, read_shard
from medfocus.pipeline.isolation.failure import FAILURE
from tests.conftest import png

IMAGE = png(np.full((8, 6), 200, np.uint8))


def table(labels: list[str | None], names: list[str] | None = None) -> pa.Table:
    count = len(labels)
    names = names or [f"{row}.png" for row in range(count)]
    return records.shard_table(
        {
            "image_id": names,
            "image": [IMAGE] * count,
            "media_type": ["image/png"] * count,
            "label": labels,
            "site": ["north"] * count,
            "source_uri": names,
            "sha256": ["0"] * count,
        }
    )


def stored(folder: Path, content: bytes) -> tuple[ShardEntry, Location]:
    (folder / "shard.parquet").write_bytes(content)
    entry = ShardEntry("shard.parquet", 1, len(content), hashlib.sha256(content).hexdigest(), 1)
    return entry, locate(str(folder), StorageSection())


def test_a_shard_is_read_as_it_was_packed(tmp_path: Path) -> None:
    packed = table(["a", None])
    assert read_shard(*stored(tmp_path, records.encode(packed))).equals(packed)


def other_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(table(["a"]).drop_columns(["image"]), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no parquet", "not a Parquet file; pack the images again"),
        (other_parquet(), "column image is missing"),
        (
            records.encode(pa.table({name: [] for name in records.QUARANTINE.names}, records.QUARANTINE)),
            "quarantine rows",
        ),
    ],
)
def test_what_is_no_shard_is_a_permanent_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        read_shard(*stored(tmp_path, content))


def test_a_shard_that_has_changed_is_a_permanent_error(tmp_path: Path) -> None:
    entry, source = stored(tmp_path, records.encode(table(["a"])))
    with pytest.raises(ShardError, match="has changed since it was packed"):
        read_shard(replace(entry, sha256="0" * 64), source)


def test_a_block_has_the_truth_and_no_prediction() -> None:
    block = block_of(table(["a", None, "b"]), labelled_only=False)
    assert block["truth"].tolist() == ["a", "", "b"] and "label" not in block
    assert block["patient_id"].tolist() == [""] * 3 and block["site"].tolist() == ["north"] * 3
    assert not block["error"].any() and not block[FAILURE].any() and block["image"].tolist() == [IMAGE] * 3
    assert block_of(table(["a", None, "b"]), labelled_only=True)["image_id"].tolist() == ["0.png", "2.png"]


def test_a_repeated_image_id_fails_under_a_name_of_its_own() -> None:
    block = block_of(table(["a", "a", None, "b"], ["x", "y", "x", "x"]), labelled_only=False)
    assert block["image_id"].tolist() == ["x", "y", "x#2", "x#3"]
    assert block["error"].tolist() == ["", "", "DuplicateId", "DuplicateId"]
    assert block["message"][3] == "row 0 of the shard has the same image_id"
    labelled = block_of(table(["a", "a", None, "b"], ["x", "y", "x", "x"]), labelled_only=True)
    assert labelled["image_id"].tolist() == ["x", "y", "x#3"]


def test_a_row_that_is_replaced_is_not_read(tmp_path: Path) -> None:
    """Its image may be elsewhere under the same name: the newer row is the one that counts."""
    packed = table(["a", "b", None, "b"], ["x", "y", "x", "z"])
    entry, source = stored(tmp_path, records.encode(packed))
    entry = replace(entry, rows=3, replaced=(0,))
    assert read_shard(entry, source).equals(packed.slice(1))
    block = decoded(entry, source)
    assert block["image_id"].tolist() == ["y", "x", "z"] and not block["error"].any()
    assert block["shard_rows"].tolist() == [3] * 3 and set(block["shard"]) == {entry.key} != {entry.sha256}
    assert decoded(replace(entry, rows=0, replaced=(0, 1, 2, 3)), source)["shard_rows"].tolist() == [0]


def test_a_window_goes_with_its_image_to_the_decoder() -> None:
    rows = table(["a", None])
    rows = rows.set_column(rows.schema.get_field_index("window"), rows.schema.field("window"), [[None, [40.0, 400.0]]])
    block = block_of(rows, labelled_only=False)
    assert block["window"].tolist() == [None, (40.0, 400.0)] and block["split"].tolist() == ["", ""]
    assert block_of(rows, labelled_only=True)["window"].tolist() == [None]


def run(stage: Callable[[dict[str, Any]], dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
    """Isolation without a cluster."""
    return stage(batch)


def decoded(entry: ShardEntry, source: Location, *, labelled_only: bool = False) -> dict[str, Any]:
    row = {"entry": np.array([json.dumps(asdict(entry))], object)}
    options = {"size": 16, "max_pixels": 100}
    return read_and_decode(row, source, options, labelled_only, run)  # type: ignore[arg-type]


def test_a_shard_becomes_a_block_of_decoded_rows(tmp_path: Path) -> None:
    entry, source = stored(tmp_path, records.encode(table(["a", None])))
    block = decoded(entry, source)
    assert block["pixels"].shape[:3] == (2, 16, 16) and set(block["pixels"].ravel().tolist()) == {200}
    assert (block["height"].tolist(), block["width"].tolist()) == ([8, 8], [6, 6])
    assert not {"image", "media_type", "window"} & block.keys()
    assert block["shard"].tolist() == [entry.sha256] * 2 and block["shard_rows"].tolist() == [2, 2]


def test_a_shard_without_rows_to_process_is_one_blank_row(tmp_path: Path) -> None:
    entry, source = stored(tmp_path, records.encode(table([None, None])))
    block = decoded(entry, source, labelled_only=True)
    assert (block["image_id"].tolist(), block["shard_rows"].tolist()) == ([""], [0])
    assert (block["shard"].tolist(), block["error"].tolist()) == ([entry.sha256], ["NoLabel"])
    assert block[FAILURE].tolist() == [""]


def test_a_shard_that_cannot_be_read_is_one_blank_row_with_the_reason(tmp_path: Path) -> None:
    entry, source = stored(tmp_path, b"no parquet")
    block = decoded(entry, source)
    assert "not a Parquet file" in block[FAILURE][0] and block["error"].tolist() == ["ShardError"]
    assert len(block["pixels"]) == 1 and block["shard"].tolist() == [entry.sha256]


@pytest.mark.parametrize("error", [AccessError("denied"), StorageError("slow")])
def test_only_storage_that_may_not_be_used_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: StorageError
) -> None:
    def read(shard: ShardEntry, source: Location) -> pa.Table:
        raise error

    monkeypatch.setattr(decode, "read_shard", read)
    entry, source = stored(tmp_path, b"")
    if isinstance(error, AccessError):
        with pytest.raises(AccessError):
            decoded(entry, source)
    else:
        assert decoded(entry, source)[FAILURE].tolist() == ["slow"]
