"""From encoded bytes to pixels.

To read another file format, add a module to ``stages.formats`` and an entry to ``READERS`` (docs/formats.md).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin

from medfocus.stages.batch import Batch, fail, start, well
from medfocus.stages.formats import media_types
from medfocus.stages.formats.heic import read_heic
from medfocus.stages.formats.jpeg import read_jpeg
from medfocus.stages.formats.jpeg2000 import read_jpeg_2000
from medfocus.stages.formats.jpeg_xl import read_jpeg_xl
from medfocus.stages.formats.levels import ends_of
from medfocus.stages.formats.media_types import is_dib, media_type_of
from medfocus.stages.formats.picture import ImageError, Picture
from medfocus.stages.formats.pillow_image import read_image
from medfocus.stages.formats.png import read_png
from medfocus.stages.formats.tiff import read_tiff
from medfocus.stages.formats.webp import read_webp

__all__ = ["Decode", "media_type_of"]


def _read_bmp(content: bytes, max_pixels: int) -> Picture:
    """Decode a BMP or a DIB."""
    plugin = BmpImagePlugin.DibImageFile if is_dib(content) else BmpImagePlugin.BmpImageFile
    return read_image(content, "BMP", plugin, max_pixels)


def _read_gif(content: bytes, max_pixels: int) -> Picture:
    """Decode a GIF of one frame."""
    return read_image(content, "GIF", GifImagePlugin.GifImageFile, max_pixels)


READERS: dict[str, Callable[[bytes, int], Picture]] = {
    media_types.PNG: read_png,
    media_types.JPEG: read_jpeg,
    media_types.TIFF: read_tiff,
    media_types.BMP: _read_bmp,
    media_types.WEBP: read_webp,
    media_types.GIF: _read_gif,
    media_types.JPEG2000: read_jpeg_2000,
    media_types.CODESTREAM: read_jpeg_2000,
    media_types.HEIC: read_heic,
    media_types.JPEG_XL: read_jpeg_xl,
}
"""The reader of each media type: from the bytes of a file and the limit of pixels to a picture."""


def readable_media_type(content: bytes) -> str:
    """The media type of an image that ``READERS`` reads, from its bytes.

    Raises:
        ImageError: Unsupported where the file is known and not read, Undecodable where it is not known.
    """
    media_type = media_type_of(content)
    if media_type is None:
        if other := media_types.other_kind_of(content):
            raise ImageError("Unsupported", f"the file is {other}, which is not read; convert it to PNG or TIFF")
        raise ImageError("Undecodable", "the bytes are of no known kind of image")
    if media_type in media_types.NOT_READ:
        name = media_types.NOT_READ[media_type]
        raise ImageError("Unsupported", f"{name} images are not read; convert them to PNG or TIFF")
    return media_type


@contextmanager
def failing(batch: Batch, row: int, stage: str) -> Iterator[None]:
    """Mark a row as failed if its image cannot be decoded inside the block. Warnings are dropped.

    Args:
        batch: the batch, with failure columns that may be written.
        row: index of the row.
        stage: name of the stage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings may quote metadata
        try:
            yield
        except ImageError as error:
            fail(batch, row, stage, error.kind, str(error))
        except MemoryError:
            text = "there was not enough memory to decode the image; give the process more, and try it again"
            fail(batch, row, stage, "OutOfMemory", text)
        except Exception as error:  # decoders raise errors of any class on damaged bytes
            text = f"the file is damaged in a way that its decoder does not expect ({type(error).__name__})"
            fail(batch, row, stage, "Undecodable", text)


class Decode:
    """Decodes images as a viewer shows them, and resizes each to a square.

    Both models take the whole image resized to a square, so that masks and patches line up. Masks are resized back to
    the upright image. The table in docs/formats.md says what happens to each kind of file. The rules:

    - The EXIF orientation (in a TIFF, its tag 274) is applied once. ``height``, ``width`` and masks belong to the
      upright image.
    - Samples of 8 bits and fewer are displayed by value. Others (more bits, signed, floating-point) are windowed from
      the 0.5th to the 99.5th percentile of the image. All colour channels share one window. It covers the finite
      samples of pixels that are not fully transparent. NaN is black.
    - Opacity blends an image with black. A fully transparent pixel is black, whatever its colour, since it may have
      been erased.
    - Where white is zero, samples are inverted at any depth. Palettes are looked up. CMYK, YCbCr and L*a*b* are
      converted to red, green and blue. Colour profiles (ICC) are not applied.
    - Of a TIFF the main image is decoded, not its thumbnails, reduced levels or masks; of an MPO, the first picture.
      Other files with several images, and animations, are refused.

    Resources:
        One CPU core. Memory for one image at a time: the file, the decoded samples (at most 8 bytes for each allowed
        pixel), and a copy at 8 bits while it is resized.

    Columns taken:
        image: bytes [N], the encoded files.
        media_type: str [N], what each file claims to be, such as ``image/png``.
        window: float64 [N, 2], centre and width of the window of a PNG of 16 bits, used instead of the percentiles:
            ``centre - width / 2`` is black, ``centre + width / 2`` is white. A row may have none; so may the batch.

    Columns added:
        pixels: uint8 [N, size, size, C]; C is 1 where every image of the batch is grey, else 3.
        height: int32 [N], of the upright image in pixels.
        width: int32 [N], of the upright image in pixels.
        stage: str [N], the failure columns (``stages.batch``).
        error: str [N].
        message: str [N].

    Columns removed:
        image, window.

    Errors:
        EmptyImage: the file has no bytes.
        Undecodable: the file is damaged, or not an image.
        Truncated: the file ends too early.
        Unsupported: a kind of file that is known and not read.
        MissingDecoder: the build of a package lacks a codec.
        WrongMediaType: the bytes are not what ``media_type`` claims.
        TooManyPixels: the header names more than ``max_pixels``.
        OutOfMemory: the process has not enough memory.
        ManyFrames: the file holds several images.
        NotFinite: no sample is a finite number.
        NothingShown: every pixel is fully transparent.

    Args:
        size: side of the square in pixels.
        max_pixels: most pixels of an image; a larger one is refused from its header, before it is decoded. It is the
            only limit: Pillow's own is suspended during the call.
    """

    def __init__(self, *, size: int, max_pixels: int):
        self.size = size
        self.max_pixels = max_pixels

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Decode a batch.

        Args:
            batch: the columns taken; rows that have failed already are skipped.

        Returns:
            A copy of the batch with the columns added and without those removed.
        """
        out = start({name: column for name, column in batch.items() if name not in ("image", "window")})
        rows = len(batch["image_id"])
        windows = batch.get("window")
        images: list[np.ndarray | None] = [None] * rows
        height, width = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for row in well(out):
            window = windows[row] if windows is not None and np.size(windows[row]) == 2 else None
            with failing(out, row, "decode"):
                picture = self._read(batch["image"][row], batch["media_type"][row], window)
                width[row], height[row] = picture.size
                images[row] = picture.square(self.size)
        channels = max((image.shape[2] for image in images if image is not None), default=1)
        pixels = np.zeros((rows, self.size, self.size, channels), np.uint8)
        for row, image in enumerate(images):
            if image is not None:
                pixels[row] = image  # a grey image in a coloured batch is repeated over the channels
        return out | {"pixels": pixels, "height": height, "width": width}

    def _read(self, content: bytes, media_type: str, window: Sequence[float] | None) -> Picture:
        """Decode one file; raises ImageError."""
        if not content:
            raise ImageError("EmptyImage", "the image has no bytes")
        actual = readable_media_type(content)
        if actual != media_type:
            raise ImageError("WrongMediaType", f"the bytes are {actual}, the row says {media_type}")
        if window is not None and actual == media_types.PNG:
            return read_png(content, self.max_pixels, ends_of((window[0], window[1])))
        return READERS[actual](content, self.max_pixels)
