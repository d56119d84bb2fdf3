import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.data import records
from medfocus.pipeline.errors import UsageError


def test_schema_name_version_and_classes_travel_in_the_file() -> None:
    schema = records.prediction_schema(["a", "b"])
    content = records.encode(pa.table({field.name: [] for field in schema}, schema=schema))
    read = pq.read_schema(pa.BufferReader(content))
    records.check_record(read, records.PREDICTION, "file")
    assert read.metadata[records.CLASSES_KEY] == b'["a", "b"]'


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (records.SHARD.remove(1), "column image is missing"),
        (records.SHARD.set(1, pa.field("image", pa.string())), "column image is string, expected binary"),
        (records.QUARANTINE, "holds quarantine rows, expected shard rows"),
        (pa.schema([("a", pa.int8())]), "holds no MedFocus rows"),
        (records.SHARD.with_metadata(records.SHARD.metadata | {b"medfocus.version": b"0"}), "schema version 0"),
    ],
)
def test_a_file_that_is_not_the_record_is_refused(schema: pa.Schema, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        records.check_record(schema, records.SHARD, "s3://b/shard-1.parquet")
    assert str(caught.value).startswith("s3://b/shard-1.parquet: ")


def test_tokens_round_trip_as_float16_tensors() -> None:
    schema = records.feature_schema(5, 3, region=False)
    tokens = np.arange(30, dtype=np.float16).reshape(2, 5, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(tokens)
    read = pq.read_table(pa.BufferReader(records.encode(pa.table({"tokens": column}))))
    assert read.schema.field("tokens").type == schema.field("tokens").type
    assert np.array_equal(read["tokens"].combine_chunks().to_numpy_ndarray(), tokens)


def test_an_arrow_table_without_rows_is_still_a_record() -> None:
    empty = pa.table({field.name: [] for field in records.QUARANTINE}, schema=records.QUARANTINE)
    assert pq.read_table(pa.BufferReader(records.encode(empty))).schema.equals(records.QUARANTINE)


def test_shard_rows_need_only_the_columns_that_may_not_be_null() -> None:
    rows = {"image_id": ["a", "b"], "image": [b"1", b"2"], "media_type": ["image/png"] * 2}
    rows |= {"source_uri": ["x", "y"], "sha256": ["0", "1"], "window": [None, [40.0, 400.0]], "frame": [0, None]}
    read = pq.read_table(pa.BufferReader(records.encode(records.shard_table(rows))))
    assert read.schema.equals(records.SHARD)
    records.check_record(read.schema, records.SHARD, "shard")
    for name in records.SHARD.names:
        assert read[name].to_pylist() == rows.get(name, [None, None])
    with pytest.raises(ValueError, match=r"lack the columns \['sha256'\] or have unknown ones \['size'\]"):
        records.shard_table({name: rows[name] for name in rows if name != "sha256"} | {"size": [1, 2]})
    assert records.shard_table({name: [] for name in records.SHARD.names}).num_rows == 0


def test_columns_that_repeat_cost_little() -> None:
    """A thousand frames of one device cost a few bytes each, whatever its name."""
    count = 1000
    rows = {name: [""] * count for name in ("image_id", "media_type", "source_uri", "sha256")} | {
        "image": [b""] * count
    }
    bare = len(records.encode(records.shard_table(rows)))
    names = ("patient_id", "study_id", "series_id", "manufacturer", "device_model", "modality", "body_part", "split")
    text = "a name of some length that is the same in each row of the shard"
    described = records.encode(records.shard_table(rows | {name: [text] * count for name in names}))
    assert len(described) - bare < 3 * count
    metadata = pq.read_metadata(pa.BufferReader(described)).row_group(0)
    columns = {metadata.column(index).path_in_schema: metadata.column(index) for index in range(metadata.num_columns)}
    assert all(columns[name].has_dictionary_page for name in names)
    assert not any(columns[name].has_dictionary_page for name in ("image", "image_id", "sha256"))
