"""From tokens to class probabilities and a decision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from medfocus.stages.batch import Batch, fail, well, writable
from medfocus.stages.prompted_clip import PromptedCLIP


class Classify:
    """Classifies images with the prompted part of CLIP, above the cut, and accepts or refers each prediction.

    Of several views of an image it classifies the first, which is the image itself.

    Resources:
        The device of the model: one GPU, or CPU threads of torch. One pass takes ``batch_size`` images.

    Columns taken:
        tokens: float16 [N, V, L, D], CLIP tokens at the cut.
        focus: float16 [N, V, L-1], share of each patch that the focus mask covers, 0..1.
        region_tokens: float16 [N, V, L, D], the tokens of the best region; only where the model uses them.

    Columns added:
        probabilities: float32 [N, C], in the order of ``settings.classes``.
        label: str [N], the class with the highest probability.
        confidence: float32 [N], this probability.
        decision: str [N], ``accept`` or ``refer``.

    Columns removed:
        tokens, focus, region_tokens.

    Errors:
        NotFinite: a probability is not a finite number.

    Args:
        model: the prompted CLIP with its learned part loaded.
        temperature: divisor of the logits (temperature scaling, arXiv 1706.04599, section 4.2).
        accept_at: lowest confidence at which a prediction is accepted; below it the image is referred to a person.
        batch_size: images in one pass.
    """

    def __init__(self, model: PromptedCLIP, *, temperature: float, accept_at: float, batch_size: int):
        self.model = model.eval()
        self.device = model.text.device
        self.temperature, self.accept_at = temperature, accept_at
        self.batch_size = batch_size
        with torch.inference_mode():
            self.text = model.text_embedding()

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Classify a batch.

        Args:
            batch: the columns taken, and the failure columns; failed rows are skipped.

        Returns:
            A copy of the batch with the columns added and without those removed.
        """
        others = {name: column for name, column in batch.items() if name not in ("tokens", "focus", "region_tokens")}
        out, rows = writable(others), well(batch)
        classes = np.array(self.model.settings.classes, dtype=object)
        probabilities = np.zeros((len(batch["image_id"]), len(classes)), np.float32)
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            probabilities[chunk] = self._probabilities(batch, chunk)
        for row in rows:
            if not np.isfinite(probabilities[row]).all():
                fail(out, row, "classify", "NotFinite", "the class probabilities are not finite numbers")
        confidence = probabilities.max(1)
        return out | {
            "probabilities": probabilities,
            "label": classes[probabilities.argmax(1)],
            "confidence": confidence,
            "decision": np.where(confidence >= self.accept_at, "accept", "refer").astype(object),
        }

    @torch.inference_mode()
    def _probabilities(self, batch: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
        """Class probabilities float32 [M, C] of M rows."""

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(batch[name][rows, 0])).to(self.device)

        region = self.model.cache_tokens(tensor("region_tokens")) if self.model.settings.uses_region else None
        image = self.model.image_embedding(self.model.cache_tokens(tensor("tokens")), tensor("focus"), region)
        probabilities: np.ndarray = (self.model.logits(image, self.text) / self.temperature).softmax(-1).cpu().numpy()
        return probabilities
