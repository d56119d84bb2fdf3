"""The reader of WebP."""

from PIL import WebPImagePlugin

from medfocus.stages.formats.picture import ImageError, Picture, check_size
from medfocus.stages.formats.pillow_image import read_image


def read_webp(content: bytes, max_pixels: int) -> Picture:
    """Decode a WebP of one frame.

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.

    Raises:
        ImageError: Undecodable, Truncated, MissingDecoder, TooManyPixels, ManyFrames or NothingShown.
    """
    if not WebPImagePlugin.SUPPORTED:
        raise ImageError(
            "MissingDecoder", "WebP needs a build of the package Pillow that reads it; install such a build"
        )
    if int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise ImageError("Truncated", "the WebP is truncated: its header names more bytes than there are")
    if size := _size(content):  # Pillow allocates the image when it opens the file
        check_size(*size, max_pixels)
    return read_image(content, "WebP", WebPImagePlugin.WebPImageFile, max_pixels)


def _size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the first chunk; None where it is damaged."""
    kind, body = content[12:16], content[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        sides = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return sides[0] & 0x3FFF, sides[1] & 0x3FFF
    return None
