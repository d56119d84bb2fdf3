"""A block: the rows of one shard on their way through the stages."""

import numpy as np

from medfocus.pipeline.isolation.failure import FAILURE
from medfocus.stages.batch import Batch, start

# Columns that stay with an image from the shard to the commit. A null is an empty string on the way.
ROW_COLUMNS = ("image_id", "label", "patient_id", "site", "split", "source_uri")


def blank_row() -> Batch:
    """A block of one row without an image."""
    columns = {name: np.array([""], object) for name in (*ROW_COLUMNS, "truth", "media_type", FAILURE)}
    return start(columns | {"image": np.array([b""], object), "window": np.array([None], object)})
