"""Samples as steps of a scale of brightness, between what a file stores and what is shown."""

from dataclasses import dataclass

import numpy as np

from medfocus.stages.formats.picture import scale


@dataclass(frozen=True)
class Levels:
    """Samples in steps of a scale that rises with brightness.

    Attributes:
        steps: float64 of any shape; 0 to 65535.
        window: centre and width of the steps that are shown from black to white.
        padding: bool of the same shape, the samples that are black whatever their step; None where there are none.
    """

    steps: np.ndarray
    window: tuple[float, float]
    padding: np.ndarray | None

    def bytes(self) -> np.ndarray:
        """The picture, uint8 of the same shape."""
        low, high = ends_of(self.window)
        with np.errstate(all="ignore"):
            brightness = np.nan_to_num(scale(self.steps, low, high))
        pixels: np.ndarray = np.rint(brightness * 255).astype(np.uint8)
        if self.padding is not None:
            pixels[self.padding] = 0
        return pixels

    def words(self) -> np.ndarray:
        """The steps, uint16 of the same shape."""
        words: np.ndarray = np.rint(np.nan_to_num(self.steps)).astype(np.uint16)
        if self.padding is not None:
            words[self.padding] = 0
        return words


def ends_of(window: tuple[float, float]) -> tuple[float, float]:
    """The lower and the upper end of a window of a centre and a width."""
    centre, width = window
    return centre - width / 2, centre + width / 2
