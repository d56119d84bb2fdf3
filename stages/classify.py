"""Tokens to class probabilities."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from medfocus.stages.batch import Batch, fail, well, writable
from medfocus.stages.prompted_clip import PromptedCLIP


class Classify:
    """Run the prompted part of CLIP and decide.

    Args:
        model: with its learned part in place.
        temperature: what the logits are divided by (arXiv 1706.04599, section 4.2).
        accept_at: confidence from which a prediction is accepted; below it is referred to a person.
        batch_size: rows in one pass.
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
            batch: ``tokens``, ``focus`` and, where the model uses it, ``region_tokens`` of ``stages.embed``, of which
                the first view, the image itself, is classified.

        Returns:
            The batch without the tokens and with ``probabilities`` float32 [N, C], ``label`` str [N] (predicted),
            ``confidence`` float32 [N] and ``decision`` str [N]. A row whose probabilities are not finite fails at
            ``classify``.
        """
        kept = {k: v for k, v in batch.items() if k not in ("tokens", "focus", "region_tokens")}
        out, rows = writable(kept), well(batch)
        classes = np.array(self.model.settings.classes, dtype=object)
        probabilities = np.zeros((len(batch["image_id"]), len(classes)), np.float32)
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            probabilities[chosen] = self._probabilities(batch, chosen)
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
        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(batch[name][rows, 0])).to(self.device)

        region = self.model.cache_tokens(tensor("region_tokens")) if self.model.settings.uses_region else None
        image = self.model.image_embedding(self.model.cache_tokens(tensor("tokens")), tensor("focus"), region)
        return (self.model.logits(image, self.text) / self.temperature).softmax(-1).cpu().numpy()
