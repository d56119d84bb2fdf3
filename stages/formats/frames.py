"""Which frames of a DICOM object or a NIfTI volume are read, how they are shown, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from medfocus.stages.formats.picture import ImageError, check_size

# Sides of a pixel that differ by less than this share count as equal.
_SQUARE = 0.01
_FEWEST_BITS, _MOST_BITS = 8, 16


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a file are read.

    Attributes:
        which: ``all`` of them, the ``middle`` one, or ``every`` n-th from the first.
        step: n of ``every``, at least 1.
    """

    which: Literal["all", "middle", "every"] = "all"
    step: int = 1

    def __post_init__(self) -> None:
        if self.which not in ("all", "middle", "every") or self.step < 1:
            raise ValueError(f"no choice of frames: {self.which} with the step {self.step}")

    def of(self, count: int) -> range:
        """The numbers of the chosen frames, from 0, of a file that has ``count``."""
        if self.which == "middle":
            return range(count // 2, count // 2 + 1)
        return range(0, count, self.step if self.which == "every" else 1)


@dataclass(frozen=True)
class Display:
    """How frames are shown.

    Attributes:
        max_pixels: most pixels of a frame.
        bits: bits of a grey pixel. 8: as a viewer shows it. 16: before the window, which stands beside it.
        window: index of the window (or VOI LUT) to use where an image names several. An image that has fewer is shown
            by its first.
    """

    max_pixels: int
    bits: Literal[8, 16] = 8
    window: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (_FEWEST_BITS, _MOST_BITS) or self.window < 0:
            raise ValueError(f"no way to show an image: {self.bits} bits, window {self.window}")


@dataclass(frozen=True)
class Frame:
    """One frame as a viewer shows it, upright.

    Attributes:
        number: place in the file, from 0.
        pixels: uint8 [H, W] or [H, W, 3]; uint16 [H, W] where ``window`` is given.
        spacing: mm between the centres of neighbouring rows, and of neighbouring columns; None where it is not known.
        position: of the centre of the first stored pixel, in mm in the patient's coordinate system of the format; None
            where it is not known.
        window: centre and width of the part of the uint16 range that is shown from black to white, in units of the
            pixels: ``centre - width / 2`` is black and ``centre + width / 2`` is white. None for uint8.
    """

    number: int
    pixels: np.ndarray
    spacing: tuple[float, float] | None = None
    position: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None


def square_pixels(
    pixels: np.ndarray, sides: Sequence[float] | None, max_pixels: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """Resample an image whose pixels are not square, as viewers do: its shorter sides become longer (bilinear).

    Args:
        pixels: uint8 [H, W] or [H, W, 3], or uint16 [H, W].
        sides: height and width of a pixel in any unit; None counts as square.
        max_pixels: most pixels of the result.

    Returns:
        The image with square pixels, and the factors by which its height and its width grew.

    Raises:
        ImageError: TooManyPixels.
    """
    height, width = pixels.shape[:2]
    tall, wide = sides or (1.0, 1.0)
    if abs(tall - wide) <= _SQUARE * min(tall, wide):
        return pixels, (1.0, 1.0)
    if max(tall / wide, wide / tall) > max_pixels:
        raise ImageError("TooManyPixels", "the pixels are too far from square to be resampled")
    size = (width, round(height * tall / wide)) if tall > wide else (round(width * wide / tall), height)
    check_size(*size, max_pixels)
    if pixels.dtype == np.uint16:
        image = Image.fromarray(pixels.astype(np.float32))
        resampled = np.rint(np.asarray(image.resize(size, Image.Resampling.BILINEAR))).astype(np.uint16)
    else:
        resampled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    return resampled, (size[1] / height, size[0] / width)
