"""Rows of an archive as the methods see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """N images.

    ``tokens`` holds, for each view of the image (``whole``, ``masked``, ``overlay``, ``crop``), what leaves CLIP's
    lower part, float16 [N, L, D]; ``embeddings`` the same views through all of the frozen tower, float32 [N, E], each
    of length 1; ``focus`` the share of each patch that the focus mask covers, float16 [N, L-1].
    """

    image_id: np.ndarray
    label: np.ndarray
    patient: np.ndarray
    focus: np.ndarray
    tokens: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: np.ndarray | Sequence[int]) -> "Examples":
        """The rows of the given indices, in their order."""
        return Examples(
            image_id=self.image_id[rows],
            label=self.label[rows],
            patient=self.patient[rows],
            focus=self.focus[rows],
            tokens={view: column[rows] for view, column in self.tokens.items()},
            embeddings={view: column[rows] for view, column in self.embeddings.items()},
        )

    def targets(self, classes: Sequence[str]) -> np.ndarray:
        """The class of each row as an index, int64 [N]."""
        index = {name: number for number, name in enumerate(classes)}
        return np.array([index[label] for label in self.label], np.int64)
