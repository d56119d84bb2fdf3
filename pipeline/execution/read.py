"""Reading shards into blocks."""

import numpy as np
import pyarrow as pa

from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.shards import read_file
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.execution.block import ROW_COLUMNS
from medfocus.pipeline.isolation.failure import FAILURE
from medfocus.stages.batch import Batch, fail, start


def read_shard(shard: ShardEntry, source: Location) -> pa.Table:
    """Read the rows of a shard and check them against the manifest.

    Args:
        shard: entry of the shard in the manifest.
        source: prefix of the shards.

    Returns:
        A table of the record ``SHARD``, without the rows that the manifest has as replaced.

    Raises:
        StorageError: the file cannot be read.
        ShardError: the file is not a shard, lacks a column, or has changed since the manifest was written. This error
            is permanent.
    """
    return shard.remaining(read_file(shard, source))


def block_of(table: pa.Table, labelled_only: bool) -> Batch:
    """The block of a shard: its rows as the stages take them, with a null as an empty string.

    A row with the ``image_id`` of an earlier row fails, under the name ``image_id#row``.

    Args:
        table: rows of the shard.
        labelled_only: leave rows without a label out.

    Returns:
        Columns of one length: ``ROW_COLUMNS`` with ``truth`` in place of ``label``, ``image``, ``media_type``,
        ``window`` (centre and width of 16-bit images, else None), ``failure``, and those that ``stages.batch`` adds.
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
    rows["window"] = _windows(table)
    # The label of a shard is the truth. The stages keep the predicted class in ``label``.
    rows["truth"] = rows.pop("label")
    rows[FAILURE] = np.full(table.num_rows, "", object)
    selection = rows["truth"] != "" if labelled_only else np.ones(table.num_rows, bool)
    return {name: column[selection] for name, column in rows.items()}


def _windows(table: pa.Table) -> np.ndarray:
    """The window of each image, object [N]: a tuple of centre and width, or None."""
    windows = np.full(table.num_rows, None, object)
    for row, window in enumerate(table["window"].to_pylist()):
        windows[row] = window and tuple(window)
    return windows
