"""An actor without models: what ``score`` takes around the models can be measured with it."""

from typing import Any

import numpy as np

from medfocus.pipeline.execution.actor import ModelActor
from medfocus.pipeline.execution.job import JobSpec
from medfocus.stages.batch import Batch


class NoModels(ModelActor):
    """Takes the place of ``ModelActor``: every mask is empty, and every image gets the first class.

    Args:
        job: what the run scores; its classes are the labels.
        _share: ignored, there is nothing that needs threads.
        _device: ignored.
        journal: the actor that records the rows in hand.
    """

    def __init__(self, job: JobSpec, _share: Any, _device: str, journal: Any):
        self.job, self.journal = job, journal
        self.segment = _empty_masks  # type: ignore[assignment]

    def _embed(self, batch: Batch) -> Batch:
        count, classes = len(batch["image_id"]), self.job.provenance.classes
        return {name: column for name, column in batch.items() if name != "pixels"} | {
            "probabilities": np.tile(np.eye(len(classes), dtype=np.float32)[0], (count, 1)),
            "label": np.full(count, classes[0], object),
            "confidence": np.ones(count, np.float32),
            "decision": np.full(count, "accept", object),
        }


def _empty_masks(batch: Batch) -> Batch:
    count = len(batch["image_id"])
    return batch | {"mask_counts": np.full(count, "", object), "mask_score": np.zeros(count, np.float32)}
