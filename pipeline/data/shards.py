"""Reading the file of a shard."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import ShardError, UsageError


def read_file(shard: ShardEntry, source: Location) -> pa.Table:
    """Read all rows of a shard's file and check them against the manifest.

    Args:
        shard: entry of the shard in the manifest.
        source: prefix of the shards.

    Returns:
        A table of the record ``SHARD``, with the rows that the manifest has as replaced.

    Raises:
        StorageError: the file cannot be read.
        ShardError: the file is not a shard, lacks a column, or has changed since the manifest was written. This error
            is permanent.
    """
    location = source / shard.name
    content = location.read()
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ShardError(f"{location.uri}: has changed since it was packed; pack the images again")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise ShardError(f"{location.uri}: not a Parquet file; pack the images again") from error
    try:
        records.check_record(file.schema_arrow, records.SHARD, location.uri)
    except UsageError as error:
        raise ShardError(str(error)) from error  # the run has begun: the call itself was right
    return file.read()
