"""Reading shards and feature files: what a worker does before any model sees the rows."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import ShardError, UsageError
from medfocus.pipeline.execution.block import CARRIED, FAILURE
from medfocus.stages.batch import Batch, fail, start


def read_shard(shard: ShardEntry, source: Location) -> pa.Table:
    """The rows of a shard, checked against the manifest.

    Raises:
        StorageError: it cannot be read.
        ShardError: it is not a shard, a column is missing, or its content is not what the manifest names.
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
        raise ShardError(str(error)) from error  # too late to be a matter of the call
    return file.read()


def block_of(table: pa.Table, labelled_only: bool) -> Batch:
    """The rows of a shard as the stages take them, null as an empty string.

    An ``image_id`` that an earlier row has makes a row fail, under the name ``image_id#row``.
    """
    rows = start({name: np.array([value or "" for value in table[name].to_pylist()], object) for name in CARRIED})
    first: dict[str, int] = {}
    for row, name in enumerate(rows["image_id"].tolist()):
        if first.setdefault(name, row) != row:
            rows["image_id"][row] = f"{name}#{row}"
            fail(rows, row, "read", "DuplicateId", f"row {first[name]} of the shard has the same image_id")
    rows["image"] = table["image"].to_numpy(zero_copy_only=False)
    rows["media_type"] = table["media_type"].to_numpy(zero_copy_only=False)
    # A label of the shard is the truth; the stages' ``label`` is what the model predicts.
    rows["truth"] = rows.pop("label")
    rows[FAILURE] = np.full(table.num_rows, "", object)
    kept = rows["truth"] != "" if labelled_only else np.ones(table.num_rows, bool)
    return {name: column[kept] for name, column in rows.items()}
