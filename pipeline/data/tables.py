"""Columns of Parquet files that hold a record; several files are read at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.dataset as pads

from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError

# Files read at once: each read of an object store waits for the network.
_READERS = 8

T = TypeVar("T")


def read_columns(location: Location, record: pa.Schema, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file, which has to hold a record; the file's metadata comes with them."""
    fragment = pads.ParquetFileFormat().make_fragment(location.path, location.filesystem)
    try:
        schema = location.attempt(lambda: fragment.physical_schema)
        records.check_record(schema, record, location.uri)
        table = location.attempt(lambda: fragment.to_table(columns=columns))
    except pa.ArrowInvalid as error:
        raise UsageError(f"{location.uri}: not a whole Parquet file; remove it and make it again") from error
    return table.replace_schema_metadata(schema.metadata)


def each_of(locations: Sequence[Location], read: Callable[[Location], T]) -> list[T]:
    """What ``read`` gives for each, in order; several are read at once."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, locations))
