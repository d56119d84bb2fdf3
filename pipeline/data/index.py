"""The index: what each shard of an archive was made of, so that packing again adds only what is new.

``pack`` works on portions of the source. The task that has written the shards of a portion commits the portion's file
of the index last. A portion without one is worked on again. Shards that it left are then overwritten, or stay as files
that nothing names.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.data.tables import each_of, read_columns
from medfocus.pipeline.errors import UsageError

FOLDER = "index"
# Outcome of an item whose image is a row of a shard, and of one whose patient has withdrawn.
PACKED, WITHDRAWN = "packed", "withdrawn"
# How the names of shards begin.
SHARD_PREFIX = "shard-"
_PREFIX, _SUFFIX = "portion-", ".parquet"
_SHARDS_KEY, _SECONDS_KEY = b"medfocus.shards", b"medfocus.seconds"


@dataclass(frozen=True)
class Portion:
    """A portion of the source that has been packed.

    Args:
        id: id of the portion.
        rows: table of the record ``INDEX``: a row for each image, or for an item without one.
        shards: entries of the shards as they were written: all of their rows count. The manifest says which do no more.
        seconds: time that the portion took.
    """

    id: str
    rows: pa.Table
    shards: tuple[ShardEntry, ...]
    seconds: float = 0.0


def shard_name(portion_id: str, number: int) -> str:
    """Name of a shard of a portion."""
    return f"{SHARD_PREFIX}{portion_id}-{number:03d}.parquet"


def write_portion(
    prefix: Location,
    portion_id: str,
    rows: Sequence[Mapping[str, Any]],
    shards: Sequence[ShardEntry],
    seconds: float = 0.0,
) -> None:
    """Commit a portion, after its shards have been written.

    Args:
        prefix: prefix of the shards.
        portion_id: id of the portion, of letters that file names may have.
        rows: fields of the record ``INDEX``; what is absent is null.
        shards: entries of the shards of the portion, as they were written.
        seconds: time that the portion took.

    Raises:
        StorageError: the file cannot be written.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=records.INDEX)
    commit_portion(prefix, Portion(portion_id, table, tuple(shards), seconds))


def commit_portion(prefix: Location, portion: Portion) -> None:
    """Write the file of a portion, in place of an earlier one.

    Raises:
        StorageError: the file cannot be written.
    """
    shards = json.dumps([asdict(shard) for shard in portion.shards])
    metadata = {_SHARDS_KEY: shards.encode(), _SECONDS_KEY: str(portion.seconds).encode()}
    table = portion.rows.replace_schema_metadata(records.INDEX.metadata | metadata)
    (prefix / FOLDER / f"{_PREFIX}{portion.id}{_SUFFIX}").write(records.encode(table))


def committed(prefix: Location) -> set[str]:
    """Ids of the portions that have been committed, from one listing."""
    names = (prefix / FOLDER).files(_SUFFIX)
    return {name[len(_PREFIX) : -len(_SUFFIX)] for name in names if name.startswith(_PREFIX)}


def read_portions(prefix: Location, skip: Set[str] = frozenset()) -> Iterator[Portion]:
    """The portions that have been committed, in the order of their ids; a few are in memory at a time.

    Args:
        prefix: prefix of the shards.
        skip: ids of portions to leave out.

    Raises:
        StorageError: a file cannot be read.
        UsageError: a file is not a whole Parquet file, or no file of this index.
    """
    return each_of(sorted(committed(prefix) - skip), lambda portion_id: read_portion(prefix, portion_id))


def read_portion(prefix: Location, portion_id: str) -> Portion:
    """One portion.

    Raises:
        StorageError: the file cannot be read.
        UsageError: the file is not a whole Parquet file, or no file of this index.
    """
    location = prefix / FOLDER / f"{_PREFIX}{portion_id}{_SUFFIX}"
    table = read_columns(location, records.INDEX, records.INDEX.names)
    try:
        shards = tuple(ShardEntry.of(shard) for shard in json.loads(table.schema.metadata[_SHARDS_KEY]))
        seconds = float(table.schema.metadata[_SECONDS_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{location.uri}: names no shards; remove it and pack again") from error
    return Portion(portion_id, table, shards, seconds)
