"""The index: what was packed is known again."""

from pathlib import Path

import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.index import committed, read_portion, read_portions, shard_name, write_portion
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError
from tests.pipeline.data.packed import write_archive

SHARDS = (ShardEntry("shard-x-000.parquet", 1, 10, "a" * 64, 1), ShardEntry("shard-x-001.parquet", 2, 9, "b" * 64))
ROWS = [
    {"item": "i", "stamp": "s", "outcome": "packed", "shard": SHARDS[0].name, "row": 0, "first_day": -(2**40)},
    {"item": "j", "stamp": "s", "outcome": "Truncated", "message": "the file ends early"},
]


@pytest.fixture
def prefix(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "shards"), StorageSection())


def test_a_portion_is_read_as_it_was_written(prefix: Location) -> None:
    assert committed(prefix) == set() and list(read_portions(prefix)) == []
    write_portion(prefix, "x", ROWS, SHARDS, seconds=2.5)
    write_portion(prefix, "empty", [], [])
    assert committed(prefix) == {"x", "empty"}
    [portion] = read_portions(prefix, skip={"empty"})
    assert (portion.id, portion.shards, portion.seconds) == ("x", SHARDS, 2.5)
    assert portion.rows.to_pylist() == [dict.fromkeys(records.INDEX.names) | row for row in ROWS]
    records.check_record(portion.rows.schema, records.INDEX, "index")
    assert [(portion.id, portion.rows.num_rows) for portion in read_portions(prefix)] == [("empty", 0), ("x", 2)]
    write_portion(prefix, "x", ROWS[:1], SHARDS[:1])
    assert read_portion(prefix, "x").rows.num_rows == 1 and read_portion(prefix, "x").shards == SHARDS[:1]


def test_shards_of_portions_have_different_names(prefix: Location) -> None:
    manifest = write_archive(prefix, {"1": [[("a", None)], [("b", None)]], "2": [[("c", None)]]})
    names = [shard_name("1", 0), shard_name("1", 1), shard_name("2", 0)]
    assert [shard.name for shard in manifest.shards] == names and len(set(names)) == 3


def test_a_file_that_is_no_portion_is_told(prefix: Location) -> None:
    write_portion(prefix, "x", ROWS, SHARDS)
    file = prefix / "index" / "portion-x.parquet"
    for content, message in {
        file.read()[:-9]: "not a whole Parquet file",
        records.encode(records.INDEX.empty_table()): "names no shards; remove it and pack again",
        records.encode(records.SHARD.empty_table()): "holds shard rows, expected index rows",
    }.items():
        file.write(content)
        with pytest.raises(UsageError, match=message):
            list(read_portions(prefix))
