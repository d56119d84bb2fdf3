"""From the samples of a decoded image to what a viewer shows of it.

The readers of the file formats give a ``Raster`` (samples of any depth, as they are stored, and what they mean) or,
where Pillow has made 8-bit pixels of them already, a ``Picture``. The rules of display are in ``Raster.show``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Samples that are worked on at once; bounds what the window and alpha take beside the image itself.
_BAND = 1 << 20
# Bytes a pixel may have in an image of as many pixels as are allowed: 16 bits of red, green, blue and alpha.
_BYTES_A_PIXEL = 8
# Share of the shown samples below the window, and as many above it.
_CUT = 0.005


class ImageError(ValueError):
    """An image that cannot be used; ``kind`` is the error class that quarantine records."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def check_size(width: int, height: int, max_pixels: int, bytes_a_pixel: int = 1) -> None:
    """Raise ImageError where a header names no pixels, or more of them than may be decoded.

    Args:
        width, height: as the header has them.
        max_pixels: the limit.
        bytes_a_pixel: of the samples; above 8, fewer pixels are allowed, so that memory stays within the same bound.
    """
    if width <= 0 or height <= 0:
        raise ImageError("Undecodable", f"the header names {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("TooManyPixels", f"{width} x {height} pixels, the limit is {max_pixels}")
    if width * height * bytes_a_pixel > max_pixels * _BYTES_A_PIXEL:
        bound = f"the limit is {max_pixels} of {_BYTES_A_PIXEL} bytes"
        raise ImageError("TooManyPixels", f"{width} x {height} pixels of {bytes_a_pixel} bytes each, {bound}")


@dataclass(frozen=True)
class Picture:
    """An image of 8 bits as it is shown, but for its orientation.

    Args:
        layers: one image of mode L or RGB, or three of mode L: red, green and blue. All are [height, width] as stored.
        orientation: value of the EXIF tag 274 that is still to be applied, 1 to 8; any other counts as 1.
    """

    layers: tuple[Image.Image, ...]
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.layers[0].size
        return (height, width) if self.orientation in (5, 6, 7, 8) else (width, height)

    def square(self, side: int) -> np.ndarray:
        """The upright image, squashed to a square: uint8 [side, side, C], C is 1 where it is grey, else 3."""
        squashed = [np.asarray(layer.resize((side, side), Image.Resampling.BILINEAR)) for layer in self.layers]
        pixels = np.dstack(squashed) if squashed[0].ndim == 2 else squashed[0]
        if pixels.shape[2] == 3 and np.array_equal(pixels[..., 0], pixels[..., 1]):
            pixels = pixels[..., :1] if np.array_equal(pixels[..., 1], pixels[..., 2]) else pixels
        return _upright(pixels, self.orientation)


@dataclass(frozen=True)
class Raster:
    """The samples of one image as they are stored.

    Args:
        samples: [H, W, C] of any real type; C is 1 for grey, 3 for red, green and blue.
        full: the sample that is white, where samples are shown by their value (8 bits and fewer); None: by a window.
        alpha: opacity [H, W], if there is one.
        opaque: the value of ``alpha`` that is full opacity.
        premultiplied: the samples are multiplied by their opacity already.
        white_is_zero: the smallest sample is white, the largest black.
        orientation: value of the EXIF tag 274.
    """

    samples: np.ndarray
    full: float | None
    alpha: np.ndarray | None = None
    opaque: float = 255
    premultiplied: bool = False
    white_is_zero: bool = False
    orientation: int = 1

    def show(self) -> Picture:
        """The image as a viewer shows it, at 8 bits, on black.

        Samples of 8 bits and fewer are shown by their value. Others are windowed, in one window for all channels,
        from the 0.5th to the 99.5th percentile of the finite samples of pixels that are not fully transparent. NaN is
        black; infinite values are black or white.

        Raises:
            ImageError: NotFinite or NothingShown.
        """
        if self.samples.dtype == np.uint8 and self.full == 255 and self.alpha is None and not self.white_is_zero:
            pixels = np.ascontiguousarray(self.samples[..., 0] if self.samples.shape[2] == 1 else self.samples)
            return Picture((Image.fromarray(pixels),), self.orientation)
        if self.alpha is not None and not (self.alpha > 0).any():
            raise ImageError("NothingShown", "every pixel is fully transparent")
        low, high = (0.0, float(self.full)) if self.full is not None else self._window()
        height, width, channels = self.samples.shape
        planes = np.empty((channels, height, width), np.uint8)
        for rows in self._bands():
            values, opacity = self._straight(rows)
            with np.errstate(all="ignore"):  # infinite values, and a window of no width
                shown = _scaled(values, low, high)
            shown = 1 - shown if self.white_is_zero else shown
            shown = np.nan_to_num(shown, copy=False)
            shown = shown * opacity[..., None] if opacity is not None else shown
            planes[:, rows] = np.moveaxis(np.round(shown * 255).astype(np.uint8), 2, 0)
        return Picture(tuple(Image.fromarray(plane) for plane in planes), self.orientation)

    def _bands(self) -> Iterator[slice]:
        height, width, channels = self.samples.shape
        step = max(1, _BAND // (width * channels))
        return (slice(start, start + step) for start in range(0, height, step))

    def _straight(self, rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples of some rows without the multiplication by opacity, and the opacity in 0..1 if there is one."""
        values = self.samples[rows]
        if self.alpha is None:
            return values, None
        opacity = np.nan_to_num(np.clip(self.alpha[rows] / self.opaque, 0, 1))
        if self.premultiplied:
            with np.errstate(all="ignore"):
                values = values / opacity[..., None]
        return values, opacity

    def _window(self) -> tuple[float, float]:
        """The 0.5th and the 99.5th percentile (numpy's linear ones) of what is shown."""
        count = sum(len(values) for values in self._finite())
        if not count:
            raise ImageError("NotFinite", "the image holds no value that is a finite number")
        place, between = divmod(_CUT * (count - 1), 1)
        kept = min(int(place) + 2, count)
        lowest = highest = np.empty(0, self.samples.dtype)
        for values in self._finite():
            lowest = _smallest(np.concatenate([lowest, values]), kept)
            highest = _largest(np.concatenate([highest, values]), kept)
        ends = np.sort(lowest)[-2:].astype(float), np.sort(highest)[:2][::-1].astype(float)
        low, high = (end[0] + (end[-1] - end[0]) * between for end in ends)
        return float(low), float(high)

    def _finite(self) -> Iterator[np.ndarray]:
        """Samples that count for the window, band by band, each [n]."""
        for rows in self._bands():
            values, opacity = self._straight(rows)
            values = values[opacity > 0] if opacity is not None else values
            values = values.reshape(-1)
            yield values[np.isfinite(values)] if values.dtype.kind == "f" else values


def rgb_of_cmyk(samples: np.ndarray, full: int) -> np.ndarray:
    """Red, green and blue of unsigned samples [H, W, 4 or more] of ink, without a profile; ``full`` is all ink."""
    colours = np.empty((*samples.shape[:2], 3), samples.dtype)
    for row, inks in enumerate(samples):
        ink = inks.astype(np.int64)
        colours[row] = ((full - ink[:, :3]) * (full - ink[:, 3:4]) + full // 2) // full
    return colours


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    return np.partition(values, count - 1)[:count] if len(values) > count else values


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    return np.partition(values, len(values) - count)[-count:] if len(values) > count else values


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values in 0..1 between the ends of a window; in one of no width, what lies above it is 1. NaN stays."""
    values = values.astype(np.float64)
    if high <= low:
        return np.where(np.isnan(values), np.nan, values > low)
    # By halves: the difference of two large finite numbers may be infinite.
    return np.clip((values * 0.5 - low * 0.5) / (high * 0.5 - low * 0.5), 0, 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A square image [S, S, C] turned and mirrored as EXIF's tag 274 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
