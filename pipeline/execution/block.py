"""A block: the rows of one shard on their way through the stages."""

import numpy as np

from medfocus.pipeline.errors import MedFocusError
from medfocus.stages.batch import Batch, fail, start, writable

# Columns that stay with an image from the shard to the commit. A null is an empty string on the way.
ROW_COLUMNS = ("image_id", "label", "patient_id", "site", "source_uri")
# Column with the reason why this run cannot finish the shard at this try; empty where it can.
FAILURE = "failure"
_LONGEST_REASON = 300


def blank_row() -> Batch:
    """A block of one row without an image."""
    columns = {name: np.array([""], object) for name in (*ROW_COLUMNS, "truth", "media_type", FAILURE)}
    return start(columns | {"image": np.array([b""], object)})


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
