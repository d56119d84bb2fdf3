"""Encoded bytes to pixels."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin

from medfocus.stages.batch import Batch, fail, start, well
from medfocus.stages.formats import media_types
from medfocus.stages.formats.jpeg import read_jpeg
from medfocus.stages.formats.jpeg2000 import read_jpeg_2000
from medfocus.stages.formats.media_types import is_dib, media_type_of
from medfocus.stages.formats.picture import ImageError, Picture
from medfocus.stages.formats.pillow_image import read_image
from medfocus.stages.formats.png import read_png
from medfocus.stages.formats.tiff import read_tiff
from medfocus.stages.formats.webp import read_webp

__all__ = ["Decode", "media_type_of"]


def _read_bmp(content: bytes, max_pixels: int) -> Picture:
    plugin = BmpImagePlugin.DibImageFile if is_dib(content) else BmpImagePlugin.BmpImageFile
    return read_image(content, "BMP", plugin, max_pixels)


def _read_gif(content: bytes, max_pixels: int) -> Picture:
    return read_image(content, "GIF", GifImagePlugin.GifImageFile, max_pixels)


# How each of the kinds of image that are read is read: bytes and the limit of pixels to what is shown.
_READERS: dict[str, Callable[[bytes, int], Picture]] = {
    media_types.PNG: read_png,
    media_types.JPEG: read_jpeg,
    media_types.TIFF: read_tiff,
    media_types.BMP: _read_bmp,
    media_types.WEBP: read_webp,
    media_types.GIF: _read_gif,
    media_types.JPEG2000: read_jpeg_2000,
    media_types.CODESTREAM: read_jpeg_2000,
}


class Decode:
    """Decode images as a viewer shows them, and bring each to one square size.

    Both models see the whole image squashed to a square, so that masks and patches line up; masks are brought back to
    the size of the upright image. docs/formats.md has a table of what happens to each kind of file. The rules:

    - The EXIF orientation (in a TIFF, its tag 274) is applied once. ``height``, ``width`` and masks are those of the
      upright image.
    - Samples of 8 bits and fewer are shown by their value. Others (more bits, signed, floating-point) are windowed from
      the 0.5th to the 99.5th percentile of the image: one window for all colour channels, over the finite samples of
      pixels that are not fully transparent. NaN is black.
    - An image is laid on black by its opacity. What is under full transparency is never seen: it may have been erased.
    - Where white is zero, samples are inverted at any depth. A palette is looked up. CMYK, YCbCr and L*a*b* become
      red, green and blue; colour profiles (ICC) are not applied.
    - Of a TIFF the main image is taken, not its thumbnails, reduced levels or masks; of an MPO the first picture. Other
      files with several images, and animations, are refused.

    Memory: the file, the decoded samples (at most 8 bytes a pixel for as many pixels as are allowed), and a copy at 8
    bits while they are brought to the square.

    Args:
        size: side of the square in pixels.
        max_pixels: an image with more pixels is refused from its header, before it is decoded. It is the only limit:
            Pillow's own is suspended for the call.
    """

    def __init__(self, *, size: int, max_pixels: int):
        self.size = size
        self.max_pixels = max_pixels

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Decode a batch.

        Args:
            batch: ``image`` bytes [N] and ``media_type`` str [N], beside any other columns.

        Returns:
            The batch without ``image`` and with ``pixels`` uint8 [N, size, size, C] (C is 1 where every image of
            the batch is grey, else 3), ``height`` and ``width`` int32 [N] of the upright image, and the failure
            columns. ``error`` is EmptyImage, Undecodable (damaged, or no image), Truncated, Unsupported (a kind of file
            that is not read), MissingDecoder (a package lacks a codec), WrongMediaType, TooManyPixels, OutOfMemory,
            ManyFrames, NotFinite (no finite value) or NothingShown (all is transparent).
        """
        out = start({name: column for name, column in batch.items() if name != "image"})
        rows = len(batch["image_id"])
        images: list[np.ndarray | None] = [None] * rows
        height, width = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd metadata, which may be quoted in them
            for row in well(out):
                try:
                    picture = self._read(batch["image"][row], batch["media_type"][row])
                    width[row], height[row] = picture.size
                    images[row] = picture.square(self.size)
                except ImageError as error:
                    fail(out, row, "decode", error.kind, str(error))
                except MemoryError:
                    text = "there was not enough memory to decode the image; give the process more, and try it again"
                    fail(out, row, "decode", "OutOfMemory", text)
                except Exception as error:  # decoders raise whatever the bytes lead them into
                    text = f"the file is damaged in a way that its decoder does not expect ({type(error).__name__})"
                    fail(out, row, "decode", "Undecodable", text)
        channels = max((image.shape[2] for image in images if image is not None), default=1)
        pixels = np.zeros((rows, self.size, self.size, channels), np.uint8)
        for row, decoded in enumerate(images):
            if decoded is not None:
                pixels[row] = decoded  # a grey image beside coloured ones spreads over the channels
        return out | {"pixels": pixels, "height": height, "width": width}

    def _read(self, content: bytes, media_type: str) -> Picture:
        if not content:
            raise ImageError("EmptyImage", "the image has no bytes")
        found = media_type_of(content)
        if found is None:
            if other := media_types.other_kind_of(content):
                raise ImageError("Unsupported", f"the file is {other}, which is not read; convert it to PNG or TIFF")
            raise ImageError("Undecodable", "the bytes are of no known kind of image")
        if found in media_types.NOT_READ:
            name = media_types.NOT_READ[found]
            raise ImageError("Unsupported", f"{name} images are not read; convert them to PNG or TIFF")
        if found != media_type:
            raise ImageError("WrongMediaType", f"the bytes are {found}, the row says {media_type}")
        return _READERS[found](content, self.max_pixels)
