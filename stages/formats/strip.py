"""Removes the metadata of PNG and JPEG files without decoding them: their pixels stay as they are, bit for bit."""

import re
import struct
import zlib
from collections.abc import Iterator

from medfocus.stages.formats import media_types
from medfocus.stages.formats.jpeg import FRAMES, WITHOUT_LENGTH
from medfocus.stages.formats.picture import ImageError
from medfocus.stages.formats.pillow_image import orientation_of
from medfocus.stages.formats.png import chunks_of

# Chunks of a PNG that ``png.read_png`` needs: the image, its palette and transparency, and the frames of an animation,
# which it refuses.
_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
# Place of the colour type in a PNG, and its values with an alpha channel: grey and colour.
_COLOUR_TYPE, _COLOUR_TYPES_WITH_ALPHA = 25, (4, 6)
_PNG_SIGNATURE, _PNG_EXIF = b"\x89PNG\r\n\x1a\n", b"eXIf"

# Markers of a JPEG (ITU-T T.81, table B.1). Beside the frames: DHT, DAC, DQT, DNL, DRI, DHP, EXP, and LSE of JPEG-LS.
_SOI, _EOI, _SOS, _APP0, _APP1, _APP8, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE8, 0xEE
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xF8}
# A marker that ends the coded data of a scan: no stuffed byte, no restart and no fill byte. In JPEG-LS (ITU-T T.87) a
# byte below 0x80 follows 0xFF within the data.
_MARKER = re.compile(rb"\xff+([^\0\xd0-\xd7\xff])", re.DOTALL)
_MARKER_OF_JPEG_LS = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])", re.DOTALL)
_JPEG_LS = 0xF7
_EXIF = b"Exif\0\0"


def without_metadata(content: bytes, media_type: str) -> bytes:
    """The file without texts, profiles, thumbnails, EXIF, comments, and what lies behind its picture.

    What the readers of ``stages.formats`` need stays, and so does the EXIF orientation, as the only tag of a new EXIF
    block. The decoded picture is the same. Of an MPO, the first picture stays.

    Args:
        content: the bytes of the file.
        media_type: ``image/png`` or ``image/jpeg``.

    Raises:
        ImageError: Undecodable, where the file does not begin as one of its kind; Unsupported for another kind.
    """
    if media_type == media_types.PNG:
        return _strip_png(content)
    if media_type == media_types.JPEG:
        return _strip_jpeg(content)
    raise ImageError("Unsupported", f"the metadata of {media_type} cannot be removed; store its pixels as PNG")


def hides_pixels(content: bytes, media_type: str) -> bool:
    """Whether a file can hold pixels that no viewer shows: a PNG with opacity.

    Names and faces are erased by making them transparent, and their colours stay in the file. Such a picture is to be
    stored as it is shown.
    """
    if media_type != media_types.PNG:
        return False
    has_alpha = len(content) > _COLOUR_TYPE and content[_COLOUR_TYPE] in _COLOUR_TYPES_WITH_ALPHA
    return has_alpha or any(kind == b"tRNS" for kind, _, _ in chunks_of(content))


def _strip_png(content: bytes) -> bytes:
    """A PNG of the chunks that its reader needs."""
    if not content.startswith(_PNG_SIGNATURE):
        raise ImageError("Undecodable", "the file does not begin as a PNG")
    parts, orientation = [_PNG_SIGNATURE], 1
    for kind, start, stop in chunks_of(content):
        if kind in _CHUNKS:
            parts.append(content[start:stop])
        elif kind == _PNG_EXIF and orientation == 1:
            orientation = orientation_of(content[start + 8 : stop - 4])
    if orientation != 1:
        parts.insert(2, _png_chunk(_PNG_EXIF, _exif_block(orientation)))  # behind IHDR
    return b"".join(parts)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _strip_jpeg(content: bytes) -> bytes:
    """A JPEG of the segments that its reader needs, up to the end of its first picture."""
    if not content.startswith(b"\xff\xd8"):
        raise ImageError("Undecodable", "the file does not begin as a JPEG")
    parts, exif, place_of_exif = [b"\xff\xd8"], b"", 1
    for marker, segment in _segments(content):
        body = segment[4:]
        if marker == _APP1 and body.startswith(_EXIF):
            exif += body[len(_EXIF) :]  # Pillow joins several blocks
        else:
            kept = _kept(marker, segment, body)
            place_of_exif += marker == _APP0 and kept != b"" and len(parts) == 1
            parts.append(kept)
    orientation = orientation_of(_EXIF + exif) if exif else 1
    if orientation != 1:
        parts.insert(place_of_exif, _jpeg_segment(_APP1, _EXIF + _exif_block(orientation)))
    return b"".join(parts)


def _kept(marker: int, segment: bytes, body: bytes) -> bytes:
    """What stays of a segment: all of it, the fields that decoders read, or nothing."""
    if marker in FRAMES or marker in _TABLES or marker in WITHOUT_LENGTH or marker in (_SOS, _EOI):
        return segment
    if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 12:
        return _jpeg_segment(marker, body[:12] + b"\0\0")  # version and density, and a thumbnail of 0 x 0
    if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        return _jpeg_segment(marker, body[:12])  # with the colour transform
    if marker == _APP8 and body.startswith(b"mrfx"):
        return _jpeg_segment(marker, body[:5])  # the colour transform of JPEG-LS
    return b""


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment of the first picture; those of a scan include its coded data.

    Bytes between segments, which decoders skip, are left out.
    """
    place, in_scan = 2, _MARKER
    while (found := _MARKER.search(content, place)) is not None:
        start, marker = found.end() - 2, found[1][0]
        if marker in WITHOUT_LENGTH or marker == _EOI:
            yield marker, content[start : start + 2]
            if marker == _EOI:
                return
            place = start + 2
            continue
        length = struct.unpack_from(">H", content, start + 2)[0] if start + 4 <= len(content) else 2
        stop = start + 2 + max(length, 2)
        if marker == _JPEG_LS:
            in_scan = _MARKER_OF_JPEG_LS
        if marker == _SOS:
            end = in_scan.search(content, stop)
            stop = end.start() if end else len(content)
        yield marker, content[start:stop]
        place = stop


def _jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _exif_block(orientation: int) -> bytes:
    """A TIFF structure with one directory of one tag, the orientation (274, a SHORT)."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 274, 3, 1, orientation, 0, 0)
