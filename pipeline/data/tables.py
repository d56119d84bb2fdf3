"""Reading columns of Parquet files that hold a record, several files at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError

# Files read at a time: each read of an object store waits for the network.
_READERS = 8

S = TypeVar("S")
T = TypeVar("T")


def read_columns(location: Location, record: pa.Schema, columns: list[str]) -> pa.Table:
    """Read columns of a Parquet file.

    Args:
        location: the file.
        record: schema of the record that the file must hold.
        columns: names of the columns.

    Returns:
        A table of these columns, with the metadata of the file.

    Raises:
        StorageError: the file cannot be read.
        UsageError: the file is not a whole Parquet file, or does not hold the record.
    """
    try:
        file = location.attempt(lambda: pq.ParquetFile(location.path, filesystem=location.arrow_filesystem))
        records.check_record(file.schema_arrow, record, location.uri)
        table = location.attempt(lambda: file.read(columns))
    except pa.ArrowInvalid as error:
        raise UsageError(f"{location.uri}: not a whole Parquet file; remove it and make it again") from error
    return table.replace_schema_metadata(file.schema_arrow.metadata)


def each_of(things: Iterable[S], read: Callable[[S], T]) -> Iterator[T]:
    """Results of ``read`` for each thing, in order; a few are read ahead of the consumer, and none is kept."""
    with ThreadPoolExecutor(_READERS) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for thing in things:
                ahead.append(pool.submit(read, thing))
                if len(ahead) > _READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
