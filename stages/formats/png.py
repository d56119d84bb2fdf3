"""The reader of PNG."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import imagecodecs
from PIL import PngImagePlugin

from medfocus.stages.formats.codec import decode_samples
from medfocus.stages.formats.picture import ImageError, Picture, Raster, check_size
from medfocus.stages.formats.pillow_image import orientation_of, read_image

# Chunks that do not affect the picture: texts and the colour profile. Pillow refuses files where these are long.
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_SIGNATURE, _HEADER = 8, 33


def read_png(content: bytes, max_pixels: int, window: tuple[float, float] | None = None) -> Picture:
    """Decode a PNG.

    libpng decodes samples of 16 bits, because Pillow reduces them to 8 bits where there is colour or alpha.

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.
        window: the values that are black and white where samples have 16 bits; None computes them.

    Raises:
        ImageError: Undecodable, Truncated, TooManyPixels, ManyFrames or NothingShown.
    """
    chunks = list(chunks_of(content))
    if len(content) < _HEADER:
        raise ImageError("Truncated", "the PNG is truncated: it ends before its header does")
    if chunks[0][0] != b"IHDR":
        raise ImageError("Undecodable", "the PNG does not begin with its header")
    width, height, bits = struct.unpack(">IIB", content[16:25])
    check_size(width, height, max_pixels)
    exif = next((content[start + 8 : stop - 4] for kind, start, stop in chunks if kind == b"eXIf"), None)
    try:
        if bits < 16:
            return read_image(_remove_notes(content, chunks), "PNG", PngImagePlugin.PngImageFile, max_pixels, exif)
        _check_sums(content, chunks)
        if any(kind == b"acTL" and content[start + 8 : start + 12] > b"\0\0\0\1" for kind, start, _ in chunks):
            raise ImageError("ManyFrames", "the file holds several frames; store each as an image of its own")
        raster = _decode_16_bits(_remove_notes(content, chunks), orientation_of(exif))
        return replace(raster, window=window).to_picture()
    except ImageError as error:
        if error.kind == "Undecodable" and (chunks[-1][0] != b"IEND" or chunks[-1][2] > len(content)):
            raise ImageError("Truncated", "the PNG is truncated: it ends before its last chunk") from error
        raise


def _decode_16_bits(content: bytes, orientation: int) -> Raster:
    """Decode a PNG of 16 bits."""
    samples = decode_samples(imagecodecs.png_decode, content, "PNG")
    colours = 1 if samples.shape[2] < 3 else 3
    alpha = samples[..., colours] if samples.shape[2] > colours else None
    return Raster(samples[..., :colours], None, alpha, opaque=65535, orientation=orientation)


def _check_sums(content: bytes, chunks: list[tuple[bytes, int, int]]) -> None:
    """Raise ImageError where a chunk that the pixels depend on is damaged.

    libpng checks this too, but imagecodecs 2026.3.6 releases a reference to None too often in each failure. After
    thousands of failures Python below 3.12 aborts.
    """
    for kind, start, stop in chunks:
        checksum = zlib.crc32(content[start + 4 : stop - 4]).to_bytes(4, "big")
        if kind[:1].isupper() and checksum != content[stop - 4 : stop]:
            raise ImageError("Undecodable", "the PNG is damaged: the checksum of a chunk is wrong")


def chunks_of(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and stop offset of each chunk up to IEND; the last may stop after the end of the file."""
    start, kind = _SIGNATURE, b""
    while start + 8 <= len(content) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, start)
        yield kind, start, start + 12 + length
        start += 12 + length


def _remove_notes(content: bytes, chunks: list[tuple[bytes, int, int]]) -> bytes:
    """The file without its texts and its colour profile."""
    if not any(kind in _NOTES for kind, _, _ in chunks):
        return content
    return content[:_SIGNATURE] + b"".join(content[start:stop] for kind, start, stop in chunks if kind not in _NOTES)
