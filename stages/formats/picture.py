"""From the samples of a decoded image to the picture that a viewer shows.

A reader of a file format returns a ``Picture`` where Pillow has decoded the file to 8-bit pixels. Otherwise it makes a
``Raster`` (the samples as they are stored, and their meaning), which ``Raster.to_picture`` converts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Samples in one band of rows. It bounds the memory that the window and alpha take beside the image itself.
_BAND = 1 << 20
# Bytes of a pixel in an image with the most pixels allowed: 16 bits each of red, green, blue and alpha.
_BYTES_PER_PIXEL = 8
# Share of the visible samples below the window, and share above it.
_CLIPPED_SHARE = 0.005


class ImageError(ValueError):
    """An image that cannot be decoded.

    Args:
        kind: the error class that quarantine records, such as ``Undecodable``.
        message: what is wrong with the image and how to correct it.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def check_size(width: int, height: int, max_pixels: int, bytes_a_pixel: int = 1) -> None:
    """Check the size that a header names, before the image is decoded.

    Args:
        width: in pixels.
        height: in pixels.
        max_pixels: most pixels that may be decoded.
        bytes_a_pixel: bytes of the samples of a pixel. Above 8, fewer pixels are allowed, so that memory has the same
            bound.

    Raises:
        ImageError: Undecodable where the header names no pixels, TooManyPixels where it names too many.
    """
    if width <= 0 or height <= 0:
        raise ImageError("Undecodable", f"the header names {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("TooManyPixels", f"{width} x {height} pixels, the limit is {max_pixels}")
    if width * height * bytes_a_pixel > max_pixels * _BYTES_PER_PIXEL:
        bound = f"the limit is {max_pixels} of {_BYTES_PER_PIXEL} bytes"
        raise ImageError("TooManyPixels", f"{width} x {height} pixels of {bytes_a_pixel} bytes each, {bound}")


@dataclass(frozen=True)
class Picture:
    """An 8-bit image as a viewer shows it, before its orientation is applied.

    Attributes:
        layers: one image of mode L or RGB, or three of mode L (red, green and blue), of the size as stored.
        orientation: value of the EXIF tag 274 that is still to be applied, 1 to 8; any other value counts as 1.
    """

    layers: tuple[Image.Image, ...]
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.layers[0].size
        return (height, width) if self.orientation in (5, 6, 7, 8) else (width, height)

    def square(self, side: int) -> np.ndarray:
        """The upright image resized to a square.

        Args:
            side: side of the square in pixels.

        Returns:
            Uint8 [side, side, C]; C is 1 where the image is grey, else 3.
        """
        return self._turned([layer.resize((side, side), Image.Resampling.BILINEAR) for layer in self.layers])

    def upright(self) -> np.ndarray:
        """The upright image in its own size.

        Returns:
            Uint8 [H, W] where the image is grey, else [H, W, 3].
        """
        pixels = np.ascontiguousarray(self._turned(list(self.layers)))
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels

    def _turned(self, layers: list[Image.Image]) -> np.ndarray:
        """The pixels of layers turned upright, uint8 [H, W, C]; C is 1 where they are grey, else 3."""
        planes = [np.asarray(layer) for layer in layers]
        pixels = np.dstack(planes) if planes[0].ndim == 2 else planes[0]
        if pixels.shape[2] == 3 and np.array_equal(pixels[..., 0], pixels[..., 1]):
            pixels = pixels[..., :1] if np.array_equal(pixels[..., 1], pixels[..., 2]) else pixels
        return _turn_upright(pixels, self.orientation)


@dataclass(frozen=True)
class Raster:
    """The samples of one image as they are stored, and their meaning.

    Attributes:
        samples: [H, W, C] of any real type; C is 1 for grey, 3 for red, green and blue.
        full: the sample value that is white, for samples that are displayed by value (8 bits and fewer); None for
            samples that are windowed.
        alpha: opacity [H, W]; None where there is none.
        opaque: the value of ``alpha`` that is full opacity.
        premultiplied: whether the samples are multiplied by their opacity.
        white_is_zero: whether the smallest sample is white and the largest black.
        orientation: value of the EXIF tag 274.
        window: the values that are black and white, for samples that are windowed; None computes them.
    """

    samples: np.ndarray
    full: float | None
    alpha: np.ndarray | None = None
    opaque: float = 255
    premultiplied: bool = False
    white_is_zero: bool = False
    orientation: int = 1
    window: tuple[float, float] | None = None

    def to_picture(self) -> Picture:
        """Convert the samples to the 8-bit image that a viewer shows, blended with black by the opacity.

        Samples of 8 bits and fewer are displayed by value. Others are windowed: by ``window``, else from the 0.5th to
        the 99.5th percentile of the finite samples of pixels that are not fully transparent. All channels share one
        window. NaN is black. Infinite values are black or white.

        Raises:
            ImageError: NotFinite where no sample is finite, NothingShown where every pixel is fully transparent.
        """
        if self.samples.dtype == np.uint8 and self.full == 255 and self.alpha is None and not self.white_is_zero:
            pixels = np.ascontiguousarray(self.samples[..., 0] if self.samples.shape[2] == 1 else self.samples)
            return Picture((Image.fromarray(pixels),), self.orientation)
        if self.alpha is not None and not (self.alpha > 0).any():
            raise ImageError("NothingShown", "every pixel is fully transparent")
        low, high = (0.0, float(self.full)) if self.full is not None else self.window or self._window()
        height, width, channels = self.samples.shape
        planes = np.empty((channels, height, width), np.uint8)
        for rows in self._bands():
            values, opacity = self._unpremultiply(rows)
            with np.errstate(all="ignore"):  # infinite values, and a window of no width
                brightness = scale(values, low, high)
            brightness = 1 - brightness if self.white_is_zero else brightness
            brightness = np.nan_to_num(brightness, copy=False)
            brightness = brightness * opacity[..., None] if opacity is not None else brightness
            planes[:, rows] = np.moveaxis(np.round(brightness * 255).astype(np.uint8), 2, 0)
        return Picture(tuple(Image.fromarray(plane) for plane in planes), self.orientation)

    def _bands(self) -> Iterator[slice]:
        """Slices of rows that together are the image."""
        height, width, channels = self.samples.shape
        step = max(1, _BAND // (width * channels))
        return (slice(start, start + step) for start in range(0, height, step))

    def _unpremultiply(self, rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """The samples of some rows, not multiplied by the opacity, and the opacity in 0..1 if there is one."""
        values = self.samples[rows]
        if self.alpha is None:
            return values, None
        opacity = np.nan_to_num(np.clip(self.alpha[rows] / self.opaque, 0, 1))
        if self.premultiplied:
            with np.errstate(all="ignore"):
                values = values / opacity[..., None]
        return values, opacity

    def _window(self) -> tuple[float, float]:
        """The 0.5th and the 99.5th percentile of the visible samples, interpolated linearly as numpy does."""
        count = sum(len(values) for values in self._finite_samples())
        if not count:
            raise ImageError("NotFinite", "the image holds no value that is a finite number")
        place, between = divmod(_CLIPPED_SHARE * (count - 1), 1)
        extremes = min(int(place) + 2, count)
        lowest = highest = np.empty(0, self.samples.dtype)
        for values in self._finite_samples():
            lowest = _smallest(np.concatenate([lowest, values]), extremes)
            highest = _largest(np.concatenate([highest, values]), extremes)
        ends = np.sort(lowest)[-2:].astype(float), np.sort(highest)[:2][::-1].astype(float)
        low, high = (end[0] + (end[-1] - end[0]) * between for end in ends)
        return float(low), float(high)

    def _finite_samples(self) -> Iterator[np.ndarray]:
        """The samples that the window is computed from, [n] for each band."""
        for rows in self._bands():
            values, opacity = self._unpremultiply(rows)
            values = values[opacity > 0] if opacity is not None else values
            values = values.reshape(-1)
            yield values[np.isfinite(values)] if values.dtype.kind == "f" else values


def rgb_of_cmyk(samples: np.ndarray, full: int) -> np.ndarray:
    """Convert CMYK to red, green and blue, without a colour profile.

    Args:
        samples: unsigned [H, W, 4 or more], the amounts of ink.
        full: the largest amount.

    Returns:
        [H, W, 3] of the type of the samples.
    """
    colours = np.empty((*samples.shape[:2], 3), samples.dtype)
    for row, inks in enumerate(samples):
        ink = inks.astype(np.int64)
        colours[row] = ((full - ink[:, :3]) * (full - ink[:, 3:4]) + full // 2) // full
    return colours


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` smallest values, in any order."""
    return np.partition(values, count - 1)[:count] if len(values) > count else values


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` largest values, in any order."""
    return np.partition(values, len(values) - count)[-count:] if len(values) > count else values


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values between the ends of a window to 0..1.

    Args:
        values: of any real type and shape.
        low: what is 0, and everything below it.
        high: what is 1, and everything above it. Where it is not above ``low``, larger values than ``low`` are 1.

    Returns:
        Float64 of the same shape. NaN stays.
    """
    values = values.astype(np.float64)
    if high <= low:
        return np.where(np.isnan(values), np.nan, values > low)
    # Halves, because the difference of two large finite numbers may be infinite.
    return np.clip((values * 0.5 - low * 0.5) / (high * 0.5 - low * 0.5), 0, 1)


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror an image [H, W, C] as EXIF's tag 274 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
