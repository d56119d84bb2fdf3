"""Encoded bytes to pixels."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from medfocus.stages.batch import Batch, fail, start, well

MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "WEBP": "image/webp",
}


def media_type_of(content: bytes) -> str | None:
    """Media type that the bytes themselves show, from their header; None where it is not one that is read."""
    try:
        with Image.open(io.BytesIO(content), formats=tuple(MEDIA_TYPES)) as image:
            return MEDIA_TYPES[str(image.format)]
    except Exception:  # Pillow's header readers raise whatever the bytes lead them into
        return None


class ImageError(ValueError):
    """An image that cannot be used; ``kind`` is the error class that quarantine records."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Decode:
    """Decode images and bring each to one square size.

    Both models see the whole image squashed to a square, so that masks and patches line up; masks are brought
    back to the stored size. Pixels are taken as stored: an EXIF orientation is not applied. Intensities of more
    than 8 bits are windowed to the 0.5th and 99.5th percentile of the image.

    Args:
        size: side of the square in pixels.
        max_pixels: an image with more pixels is refused from its header, before it is decoded.
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
            the batch is grey, else 3), ``height`` and ``width`` int32 [N] as stored, and the failure columns.
        """
        out = start({name: column for name, column in batch.items() if name != "image"})
        rows = len(batch["image_id"])
        images: list[np.ndarray | None] = [None] * rows
        height, width = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        for row in well(out):
            try:
                image = self._open(batch["image"][row], batch["media_type"][row])
                width[row], height[row] = image.size
                images[row] = self._squash(image)
            except ImageError as error:
                fail(out, row, "decode", error.kind, str(error))
            except Exception as error:  # Pillow's decoders raise whatever the bytes lead them into
                fail(out, row, "decode", "Undecodable", f"the image cannot be decoded ({type(error).__name__})")
        channels = max((image.shape[2] for image in images if image is not None), default=1)
        pixels = np.zeros((rows, self.size, self.size, channels), np.uint8)
        for row, decoded in enumerate(images):
            if decoded is not None:
                pixels[row] = decoded  # a grey image beside coloured ones spreads over the channels
        return out | {"pixels": pixels, "height": height, "width": width}

    def _open(self, content: bytes, media_type: str) -> Image.Image:
        if not content:
            raise ImageError("EmptyImage", "the image has no bytes")
        try:
            image = Image.open(io.BytesIO(content), formats=tuple(MEDIA_TYPES))
        except Image.DecompressionBombError as error:
            raise ImageError("TooManyPixels", "the header names more pixels than Pillow's own limit") from error
        except Exception as error:
            raise ImageError("Undecodable", f"not an image in one of {', '.join(MEDIA_TYPES)}") from error
        found = MEDIA_TYPES[str(image.format)]
        if found != media_type:
            raise ImageError("WrongMediaType", f"the bytes are {found}, the row says {media_type}")
        if image.width * image.height > self.max_pixels:
            raise ImageError("TooManyPixels", f"{image.width} x {image.height} pixels, the limit is {self.max_pixels}")
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError("ManyFrames", "the file holds several frames; store each as an image of its own")
        return image

    def _squash(self, image: Image.Image) -> np.ndarray:
        """Pixels uint8 [size, size, 1 or 3] of an opened image."""
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _windowed(np.asarray(image, dtype=np.float64))
        elif image.mode in ("1", "L", "LA"):
            image = image.convert("L")
        else:
            image = image.convert("RGB")
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))
        if pixels.ndim == 2:
            return pixels[:, :, None]
        grey = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])
        return pixels[:, :, :1] if grey else pixels


def _windowed(values: np.ndarray) -> Image.Image:
    if not np.isfinite(values).all():
        raise ImageError("NotFinite", "the image holds values that are not finite numbers")
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return Image.fromarray(np.round(scaled * 255).astype(np.uint8))
