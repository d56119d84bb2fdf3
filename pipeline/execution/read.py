"""Reading shards into blocks."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import ShardError, UsageError
from medfocus.pipeline.execution.block import FAILURE, ROW_COLUMNS
from medfocus.stages.batch import Batch, fail, start


def read_shard(shard: ShardEntry, source: Location) -> pa.Table:
    """Read the rows of a shard and check them against the manifest.

    Args:
        shard: entry of the shard in the manifest.
        source: prefix of the shards.

    Returns:
        A table of the record ``SHARD``.

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


def block_of(table: pa.Table, labelled_only: bool) -> Batch:
    """The block of a shard: its rows as the stages take them, with a null as an empty string.

    A row with the ``image_id`` of an earlier row fails, under the name ``image_id#row``.

    Args:
        table: rows of the shard.
        labelled_only: leave rows without a label out.

    Returns:
        Columns of one length: ``ROW_COLUMNS`` with ``truth`` in place of ``label``, ``image``, ``media_type``,
        ``failure``, and those that ``stages.batch`` adds.
    """
    rows = start({name: np.array([value or "" for value in table[name].to_pylist()], object) for name in ROW_COLUMNS})
    first_rows: dict[str, int] = {}
    for row, name in enumerate(rows["image_id"].tolist()):
        first_row = first_rows.setdefault(name, row)
        if first_row != row:
            rows["image_id"][row] = f"{name}#{row}"
            fail(rows, row, "read", "DuplicateId", f"row {first_row} of the shard has the same image_id")
    rows["image"] = table["image"].to_numpy(zero_copy_only=False)
    rows["media_type"] = table["media_type"].to_numpy(zero_copy_only=False)
    # The label of a shard is the truth. The stages keep the predicted class in ``label``.
    rows["truth"] = rows.pop("label")
    rows[FAILURE] = np.full(table.num_rows, "", object)
    selection = rows["truth"] != "" if labelled_only else np.ones(table.num_rows, bool)
    return {name: column[selection] for name, column in rows.items()}
