"""Drawing on a square with coordinates 0..1: warped ellipses and smooth random fields.

All fields are float32 [S, S]. The coordinate x runs to the right and y down, both from 0 to 1 over the image.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y of the centres of the pixels, float32 [size, size] each; cached, so not to be changed."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


@lru_cache(maxsize=64)
def _interpolation(size: int, cells: int) -> np.ndarray:
    """The matrix float32 [size, cells] that interpolates linearly between values at the cells."""
    position = np.linspace(0, cells - 1, size, dtype=np.float32)
    left = np.minimum(position.astype(int), cells - 2)
    share = position - left
    matrix = np.zeros((size, cells), np.float32)
    matrix[np.arange(size), left] = 1 - share
    matrix[np.arange(size), left + 1] = share
    return matrix


def smooth_field(random: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """A smooth random field of about unit variance.

    Args:
        random: source of all random draws.
        size: side in pixels.
        cells: independent values along each side, between which the field is interpolated.

    Returns:
        Float32 [size, size].
    """
    values = random.standard_normal((cells, cells), dtype=np.float32)
    across = _interpolation(size, cells)
    return across @ values @ across.T


def blurred(image: np.ndarray, cells: int) -> np.ndarray:
    """The image [S, S] without the detail that is finer than one of ``cells`` cells along each side."""
    across = _interpolation(image.shape[0], cells)
    weights = across / across.sum(0)
    return across @ (weights.T @ image @ weights) @ across.T


@dataclass(frozen=True)
class Canvas:
    """The coordinates of an image, slightly bent so that no outline is a perfect ellipse.

    Attributes:
        size: side in pixels.
        x: float32 [size, size], 0..1 from left to right.
        y: float32 [size, size], 0..1 from top to bottom.
    """

    size: int
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def bent(cls, random: np.random.Generator, size: int, amount: float = 0.012) -> "Canvas":
        """A canvas with random bends; ``amount`` is their standard deviation as a share of the side."""
        x, y = coordinates(size)
        return cls(size, x + amount * smooth_field(random, size, 7), y + amount * smooth_field(random, size, 7))

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> "Outline":
        """An ellipse with centre (x, y) and half axes rx and ry in 0..1, rotated by ``angle`` radians."""
        reach = max(rx, ry) * 1.1 + 0.05  # includes what bending may add, and a soft edge
        rows = slice(max(0, int((y - reach) * self.size)), max(1, int((y + reach) * self.size) + 1))
        columns = slice(max(0, int((x - reach) * self.size)), max(1, int((x + reach) * self.size) + 1))
        dx, dy = self.x[rows, columns] - np.float32(x), self.y[rows, columns] - np.float32(y)
        if angle:
            cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            dx, dy = dx * cosine + dy * sine, dy * cosine - dx * sine
        dx, dy = dx * np.float32(1 / rx), dy * np.float32(1 / ry)
        near = 1 - np.sqrt(dx * dx + dy * dy)
        return Outline((rows, columns), near, min(rx, ry))


@dataclass(frozen=True)
class Outline:
    """A closed outline in a window of the image.

    Attributes:
        window: rows and columns of the window.
        near: float32 [h, w] over the window, 1 at the centre, 0 on the outline and below 0 outside.
        radius: the smaller half axis, as a share of the side.
    """

    window: tuple[slice, slice]
    near: np.ndarray
    radius: float

    def fill(self, image: np.ndarray, value: float, softness: float = 0.004) -> None:
        """Paint a value inside the outline, in place.

        Args:
            image: float32 [S, S]; changed.
            value: brightness, 0..1.
            softness: width of the edge, as a share of the side.
        """
        patch = image[self.window]
        alpha = np.clip(self.near * np.float32(self.radius / softness * 0.5) + np.float32(0.5), 0, 1)
        patch += alpha * (np.float32(value) - patch)

    def mask(self, size: int) -> np.ndarray:
        """The inside of the outline, bool [size, size]."""
        whole = np.zeros((size, size), bool)
        whole[self.window] = self.near > 0
        return whole
