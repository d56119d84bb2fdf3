"""The readers of JPEG, MPO (a JPEG with further pictures) and JPEG-LS."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
from PIL import JpegImagePlugin

from medfocus.stages.formats.codec import decode_samples
from medfocus.stages.formats.picture import ImageError, Picture, Raster, check_size
from medfocus.stages.formats.pillow_image import orientation_of, read_image

_START_OF_SCAN, _END = b"\xff\xda", b"\xff\xd9"
# Markers that begin a frame (ITU-T T.81, table B.1): SOF0 to SOF15 without the tables DHT, JPG and DAC; and SOF55 of
# JPEG-LS (ITU-T T.87).
_JPEG_LS = 0xF7
FRAMES = {*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC}
_APP1 = 0xE1
# Markers that no length follows.
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True)
class Frame:
    """The frame header of a JPEG (ITU-T T.81, section B.2.2).

    Attributes:
        marker: second byte of the marker.
        bits: bits of a sample.
        height: in pixels.
        width: in pixels.
        components: samples of a pixel.
    """

    marker: int
    bits: int
    height: int
    width: int
    components: int


def read_jpeg(content: bytes, max_pixels: int) -> Picture:
    """Decode a JPEG; of an MPO, the first picture.

    Pillow decodes samples of 8 bits, libjpeg-turbo those of more bits, and CharLS JPEG-LS.

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.

    Raises:
        ImageError: Undecodable, Truncated, Unsupported or TooManyPixels.
    """
    frame = frame_of(content)
    try:
        if frame is None or (frame.bits == 8 and frame.marker != _JPEG_LS):
            return read_image(content, "JPEG", JpegImagePlugin.JpegImageFile, max_pixels)
        check_size(frame.width, frame.height, max_pixels)
        if is_truncated(content):
            raise ImageError("Undecodable", "the last scan does not end")
        return _to_raster(content, frame).to_picture()
    except ImageError as error:
        if error.kind == "Undecodable" and is_truncated(content):
            raise ImageError("Truncated", "the JPEG is truncated: its image data do not end") from error
        raise


def is_truncated(content: bytes) -> bool:
    """Whether the last scan of a JPEG has no end. libjpeg fills the missing part with grey and reports nothing."""
    return content.rfind(_END) < content.rfind(_START_OF_SCAN)


def frame_of(content: bytes) -> Frame | None:
    """The first frame header of a JPEG or JPEG-LS file, read from its markers; None where there is none."""
    for marker, start, _ in segments_of(content):
        if marker in FRAMES and start + 6 <= len(content):
            return Frame(marker, *struct.unpack_from(">BHHB", content, start))
    return None


def segments_of(content: bytes) -> Iterator[tuple[int, int, int]]:
    """For each segment before the first scan: its marker, and the start and stop offset of its body."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF or marker in WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (_START_OF_SCAN[1], _END[1]):
            return
        stop = place + 2 + struct.unpack_from(">H", content, place + 2)[0]
        yield marker, place + 4, stop
        place = stop


def _to_raster(content: bytes, frame: Frame) -> Raster:
    """Decode a JPEG of more than 8 bits, or a JPEG-LS."""
    if frame.components not in (1, 3):
        text = f"a JPEG of {frame.components} components of {frame.bits} bits is not read; convert it to PNG or TIFF"
        raise ImageError("Unsupported", text)
    decoder = imagecodecs.jpegls_decode if frame.marker == _JPEG_LS else imagecodecs.jpeg8_decode
    samples = decode_samples(decoder, content, "JPEG")
    bodies = (content[start:stop] for marker, start, stop in segments_of(content) if marker == _APP1)
    exif = next((body for body in bodies if body.startswith(b"Exif")), None)
    return Raster(samples, 2**frame.bits - 1 if frame.bits <= 8 else None, orientation=orientation_of(exif))
