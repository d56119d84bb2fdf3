"""The task before the models: it reads a shard and decodes its images."""

import json

import numpy as np

from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import AccessError, Location
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.block import blank_row
from medfocus.pipeline.execution.read import block_of, read_shard
from medfocus.pipeline.isolation.failure import fail_shard
from medfocus.pipeline.isolation.isolation import Isolation
from medfocus.stages.batch import Batch, fail
from medfocus.stages.decode import Decode


def read_and_decode(
    batch: dict[str, np.ndarray], source: Location, decode: dict[str, int], labelled_only: bool, isolation: Isolation
) -> Batch:
    """Read one shard and decode its images.

    Ray Data drops a block without rows, and the shard with it. So a shard without a row to process becomes one blank
    row, with 0 in ``shard_rows``. A shard that cannot be read becomes one blank row that says why.

    Args:
        batch: one row with ``entry``, the fields of the shard's manifest entry as JSON.
        source: prefix of the shards.
        decode: options of the decode stage.
        labelled_only: leave rows without a label out.
        isolation: isolation of the decode stage.

    Raises:
        AccessError: storage may not be used at all; the run ends.
    """
    shard = ShardEntry.of(json.loads(str(batch["entry"][0])))
    try:
        rows = block_of(read_shard(shard, source), labelled_only)
    except AccessError:
        raise
    except MedFocusError as error:
        rows = fail_shard(blank_row(), "read", error)
    count = len(rows["image_id"])
    if not count:
        rows = blank_row()
        fail(rows, 0, "read", "NoLabel", "no row of the shard has a label")
    size = len(rows["image_id"])
    rows |= {"shard": np.full(size, shard.key, object), "shard_rows": np.full(size, count)}
    decoded = isolation(Decode(**decode), rows)
    return {name: column for name, column in decoded.items() if name not in ("media_type", "window")}
