"""Chooses the rows that are held out, by the patients and by the likeness of the images."""

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
    """Assign every feature row to a fold, and log how rows are held out.

    Args:
        prefix: prefix of the features, whose tokens are compared where a patient is not known.
        labels: ``image_id``, ``label`` and ``patient_id`` (None: not known), a list each.
        config: ``train.folds`` and ``seed``.

    Returns:
        The fold of each ``image_id``, and how the rows are held out.

    Raises:
        UsageError: the labels do not suffice.
    """
    check_classes(labels)
    neighbours = Neighbours()
    if unknown := labels["patient_id"].count(None):
        event("looking for images that may be of one patient", rows=len(labels["label"]), without_patient=unknown)
        classes = dict(zip(labels["image_id"], labels["label"], strict=True))
        neighbours = find_neighbours(read_sketches(Output(prefix, FEATURES).rows, classes), classes)
    folds, held_out = split_rows(labels, neighbours, config.train.folds, config.seed)
    log.log(logging.INFO if held_out.how == "by patient" else logging.WARNING, "%s", held_out.sentence)
    return folds, held_out
