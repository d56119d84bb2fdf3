"""A block: the rows of one shard on their way through the stages, and whether the shard can be finished."""

import numpy as np

from medfocus.pipeline.errors import MedFocusError
from medfocus.stages.batch import Batch, fail, start, writable

# Columns that go with an image from the shard to the end; null travels as an empty string.
CARRIED = ("image_id", "label", "patient_id", "site", "source_uri")
# Column with the reason for which a shard cannot be finished now; empty where all is well.
FAILURE = "failure"


def blank_row() -> Batch:
    """A row of no image."""
    blank = {name: np.array([""], object) for name in (*CARRIED, "truth", "media_type", FAILURE)}
    return start(blank | {"image": np.array([b""], object)})


def give_up(batch: Batch, stage: str, error: Exception) -> Batch:
    """The batch with the reason for which its shard cannot be finished now, and no row that is well."""
    out = writable(batch)
    failure = " ".join(str(error).split())[:300] if isinstance(error, MedFocusError) else type(error).__name__
    for row in range(len(out["image_id"])):
        fail(out, row, stage, type(error).__name__, "its shard could not be finished")
    return out | {FAILURE: np.full(len(out["image_id"]), failure, object)}
