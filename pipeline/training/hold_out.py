"""Which rows are held out, as the labels and the looks of the images tell."""

import logging
from typing import Any

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.models.held_out import HeldOut
from medfocus.pipeline.training.folds import check_classes, split_rows
from medfocus.pipeline.training.neighbours import Neighbours, find_neighbours, read_sketches


def hold_out(prefix: Location, labels: dict[str, list[Any]], config: Config) -> tuple[dict[str, int], HeldOut]:
    """The fold of each ``image_id``, and how that was decided, which is also logged.

    Raises:
        UsageError: the labels do not suffice.
    """
    check_classes(labels)
    neighbours = Neighbours()
    if unknown := labels["patient_id"].count(None):
        event("looking for images that may be of one patient", rows=len(labels["label"]), without_patient=unknown)
        sketches = read_sketches(Output(prefix, FEATURES).rows)
        neighbours = find_neighbours(sketches, dict(zip(labels["image_id"], labels["label"], strict=True)))
    folds, held_out = split_rows(labels, neighbours, config.train.folds, config.seed)
    log.log(logging.INFO if held_out.how == "by patient" else logging.WARNING, "%s", held_out.sentence)
    return folds, held_out
