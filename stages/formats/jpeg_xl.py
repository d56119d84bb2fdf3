"""The reader of JPEG XL (ISO/IEC 18181)."""

import imagecodecs

from medfocus.stages.formats.codec import decode_samples
from medfocus.stages.formats.picture import ImageError, Picture, Raster, check_size

_CODESTREAM = b"\xff\x0a"
_HEAD = 64
# Ratios of width to height that a header may name instead of a width.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def read_jpeg_xl(content: bytes, max_pixels: int) -> Picture:
    """Decode a JPEG XL file of one frame; its orientation is applied by the decoder.

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.

    Raises:
        ImageError: Undecodable, Truncated, MissingDecoder, TooManyPixels, ManyFrames or NothingShown.
    """
    codestream = _codestream_of(content)
    try:
        width, height = _size_of(codestream)
    except IndexError as error:
        raise ImageError("Truncated", "the JPEG XL is truncated: it ends before its size") from error
    check_size(width, height, max_pixels)
    try:
        samples = decode_samples(imagecodecs.jpegxl_decode, content, "JPEG XL", numthreads=1)
    except ImageError as error:
        if "NEED_MORE_INPUT" in str(error):
            raise ImageError("Truncated", "the JPEG XL is truncated: its codestream does not end") from error
        raise
    if samples.ndim != 3:
        raise ImageError("ManyFrames", "the file holds several frames; store each as an image of its own")
    colours = 1 if samples.shape[2] < 3 else 3
    alpha = samples[..., colours] if samples.shape[2] > colours else None
    full = 255 if samples.dtype.itemsize == 1 else None
    opaque = 1.0 if samples.dtype.kind == "f" else float(2 ** (8 * samples.dtype.itemsize) - 1)
    return Raster(samples[..., :colours], full, alpha, opaque).to_picture()


def _codestream_of(content: bytes) -> bytes:
    """The first bytes of the codestream, which may lie in a box of a file."""
    place = 0
    while not content.startswith(_CODESTREAM) and place + 8 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        start = place + 8
        if length == 1:
            length, start = int.from_bytes(content[place + 8 : place + 16], "big"), place + 16
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0
            return content[start : start + _HEAD]
        if length < 8:
            break
        place += length
    if not content.startswith(_CODESTREAM):
        raise ImageError("Undecodable", "the JPEG XL holds no codestream")
    return content[:_HEAD]


def _size_of(codestream: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the size header (ISO/IEC 18181-1, D.2).

    Raises:
        IndexError: the codestream is too short.
    """
    bits: int = int.from_bytes(codestream[2:].ljust(_HEAD, b"\0"), "little")
    if len(codestream) < 14:
        raise IndexError

    def take(count: int) -> int:
        nonlocal bits
        value = bits % (1 << count)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if ratio == 0:
        return side(), height
    wide, tall = _RATIOS[ratio - 1]
    return height * wide // tall, height
