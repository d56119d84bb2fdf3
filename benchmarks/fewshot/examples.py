"""The rows of a data set as the methods get them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """N images with their features.

    A view is a version of the image: ``whole``, ``masked``, ``overlay`` or ``crop``. Its tokens have passed CLIP's
    blocks below the cut, and are kept as ``stages.tower.CachedTokens`` keeps them.

    Args:
        image_id: string [N].
        label: string [N].
        patient: string [N].
        focus: share of each patch that the focus mask covers, float16 [N, L-1].
        cls: CLS token at the cut of each view, float32 [N, D].
        memory: keys and values of the frozen blocks above the cut, of each view, float32
            [N, blocks, 2, heads, L-1, D / heads].
        embeddings: output of the frozen tower for each view, float32 [N, E], of length 1.
    """

    image_id: np.ndarray
    label: np.ndarray
    patient: np.ndarray
    focus: np.ndarray
    cls: dict[str, np.ndarray]
    memory: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: np.ndarray | Sequence[int]) -> "Examples":
        """The rows with these indices, in their order."""

        def of(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {view: column[rows] for view, column in views.items()}

        return Examples(
            image_id=self.image_id[rows],
            label=self.label[rows],
            patient=self.patient[rows],
            focus=self.focus[rows],
            cls=of(self.cls),
            memory=of(self.memory),
            embeddings=of(self.embeddings),
        )

    def targets(self, classes: Sequence[str]) -> np.ndarray:
        """The class of each row as an index, int64 [N]."""
        index = {name: number for number, name in enumerate(classes)}
        return np.array([index[label] for label in self.label], np.int64)
