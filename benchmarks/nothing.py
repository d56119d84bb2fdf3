"""Actors without a model, in the places of the real ones."""

from typing import Any

import numpy as np

from stages.batch import Batch


class NoSegment:
    """In place of SAM2's actor: the whole image is the mask."""

    def __init__(self, _config: Any, _share: Any, _device: str, isolation: Any):
        self.isolation = isolation

    def __call__(self, batch: Batch) -> Batch:
        return self.isolation(_masks, batch)


class NoEmbed:
    """In place of CLIP's actor: every image is of the first class."""

    def __init__(self, _config: Any, _share: Any, _device: str, isolation: Any, prompts: Any):
        self.isolation, self.classes = isolation, prompts.settings.classes

    def __call__(self, batch: Batch) -> Batch:
        return self.isolation(self._classes, batch)

    def _classes(self, batch: Batch) -> Batch:
        count = len(batch["image_id"])
        return {name: column for name, column in batch.items() if name != "pixels"} | {
            "probabilities": np.tile(np.eye(len(self.classes), dtype=np.float32)[0], (count, 1)),
            "label": np.full(count, self.classes[0], object),
            "confidence": np.ones(count, np.float32),
            "decision": np.full(count, "accept", object),
        }


def _masks(batch: Batch) -> Batch:
    count = len(batch["image_id"])
    return batch | {"mask_counts": np.full(count, "", object), "mask_score": np.zeros(count, np.float32)}
