"""The failure of a whole shard, which is no fault of any of its rows."""

import numpy as np

from medfocus.pipeline.errors import MedFocusError
from medfocus.stages.batch import Batch, fail, writable

# Column with the reason why this run cannot finish the shard at this try; empty where it can.
FAILURE = "failure"
_LONGEST_REASON = 300


def fail_shard(batch: Batch, stage: str, error: Exception) -> Batch:
    """The block of a shard that cannot be finished at this try: all of its rows have failed.

    Args:
        batch: rows of the shard.
        stage: name of the stage that raised the error.
        error: the cause. Only errors of MedFocus are quoted: the text of another may name a patient.
    """
    out = writable(batch)
    known = isinstance(error, MedFocusError)
    failure = " ".join(str(error).split())[:_LONGEST_REASON] if known else type(error).__name__
    for row in range(len(out["image_id"])):
        fail(out, row, stage, type(error).__name__, "its shard could not be finished")
    return out | {FAILURE: np.full(len(out["image_id"]), failure, object)}
