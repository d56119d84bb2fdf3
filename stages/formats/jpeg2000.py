"""The reader of JPEG 2000 (ITU-T T.800): JP2 files, and codestreams without the boxes of a file."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np

from medfocus.stages.formats.codec import decode_samples
from medfocus.stages.formats.picture import ImageError, Picture, Raster, check_size, rgb_of_cmyk

_SIZE = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
# Enumerated colour spaces of a JP2's colour specification box.
_CMYK, _LAB, _SYCC = 12, 14, 18


@dataclass(frozen=True)
class Header:
    """The header of a JPEG 2000, from its boxes and its codestream.

    Attributes:
        width: in pixels.
        height: in pixels.
        bits: bits of a sample of the first component.
        components: components in the codestream.
        colour_space: enumerated colour space of the JP2; 0 where it names none.
        opacity: index of the opacity channel; None where there is none.
        premultiplied: whether the colours are multiplied by the opacity.
        subsampled: whether a component is smaller than the image.
    """

    width: int
    height: int
    bits: int
    components: int
    colour_space: int
    opacity: int | None
    premultiplied: bool
    subsampled: bool


def read_jpeg_2000(content: bytes, max_pixels: int) -> Picture:
    """Decode a JP2 file or a codestream with OpenJPEG.

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.

    Raises:
        ImageError: Undecodable, Truncated, Unsupported, TooManyPixels or NothingShown.
    """
    try:
        header = header_of(content)
    except (struct.error, IndexError) as error:
        raise ImageError("Undecodable", "the header of the JPEG 2000 is damaged or cut off") from error
    check_size(header.width, header.height, max_pixels)
    if header.subsampled:
        raise ImageError("Unsupported", "a JPEG 2000 with components of different sizes is not read; convert it to PNG")
    if header.colour_space == _LAB or header.components > 4:
        what = "CIELab" if header.colour_space == _LAB else f"{header.components} components"
        raise ImageError("Unsupported", f"a JPEG 2000 with {what} is not read; convert it to PNG or TIFF")
    try:
        samples = decode_samples(imagecodecs.jpeg2k_decode, content, "JPEG 2000", numthreads=1)
    except ImageError as error:
        if error.kind == "Undecodable" and _END not in content[-16:]:
            raise ImageError("Truncated", "the JPEG 2000 is truncated: its codestream does not end") from error
        raise
    return _to_raster(samples, header).to_picture()


def header_of(content: bytes) -> Header:
    """Read the boxes of a JP2 file up to its codestream, and the size marker of the codestream.

    Raises:
        ImageError: there is no codestream, or its size marker is damaged.
        struct.error: the file is truncated.
        IndexError: the file is truncated.
    """
    start, colour_space, opacity = 0, 0, None
    if not content.startswith(_SIZE):
        boxes = {kind: (first, last) for kind, first, last in _boxes(content, 0, len(content))}
        if b"jp2c" not in boxes:
            raise ImageError("Undecodable", "the JPEG 2000 holds no codestream")
        start = boxes[b"jp2c"][0]
        inner = list(_boxes(content, *boxes.get(b"jp2h", (0, 0))))
        colour_space = next((_colour_space(content, first) for kind, first, _ in inner if kind == b"colr"), 0)
        opacity = next((_opacity(content, first) for kind, first, _ in inner if kind == b"cdef"), None)
    if content[start : start + 4] != _SIZE:
        raise ImageError("Undecodable", "the codestream of the JPEG 2000 does not begin with its size")
    width, height, left, top = struct.unpack_from(">4I", content, start + 8)
    (length,) = struct.unpack_from(">H", content, start + 4)
    (components,) = struct.unpack_from(">H", content, start + 40)
    if length != 38 + 3 * components:
        raise ImageError("Undecodable", "the size marker of the JPEG 2000 does not fit its number of components")
    parts = [struct.unpack_from(">3B", content, start + 42 + 3 * part) for part in range(components)]
    if opacity is None and (components == 2 or (components == 4 and colour_space != _CMYK)):
        opacity = components - 1, False  # as in OpenJPEG's own tools
    return Header(
        width=width - left,
        height=height - top,
        bits=(parts[0][0] & 0x7F) + 1,
        components=components,
        colour_space=colour_space,
        opacity=opacity[0] if opacity else None,
        premultiplied=bool(opacity and opacity[1]),
        subsampled=any(part[1:] != (1, 1) for part in parts),
    )


def _boxes(content: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """For each box: its kind, and the start and stop offset of its content."""
    while start + 8 <= stop:
        length, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", content, start + 8), 16
        end = min(start + length, stop) if length else stop
        if end < start + head:
            return
        yield kind, start + head, end
        start = end


def _colour_space(content: bytes, start: int) -> int:
    """The enumerated colour space of a colour specification box; 0 where it has a profile instead."""
    method = content[start]
    return struct.unpack_from(">I", content, start + 3)[0] if method == 1 else 0


def _opacity(content: bytes, start: int) -> tuple[int, bool] | None:
    """The opacity channel of a channel definition box, and whether the colours are multiplied by it."""
    (count,) = struct.unpack_from(">H", content, start)
    entries = [struct.unpack_from(">3H", content, start + 2 + 6 * entry) for entry in range(count)]
    return next(((channel, kind == 2) for channel, kind, _ in entries if kind in (1, 2)), None)


def _to_raster(samples: np.ndarray, header: Header) -> Raster:
    """Interpret decoded samples [H, W, C]."""
    count = samples.shape[2]  # above the number of components where the file has a palette
    unsigned = samples.dtype.kind == "u"
    bits = header.bits if count == header.components else 8 * samples.dtype.itemsize
    full = 2**bits - 1 if bits <= 8 and unsigned else None
    opacity = header.opacity if header.opacity is not None and header.opacity < count else None
    alpha = samples[..., opacity] if opacity is not None else None
    colours = samples[..., [channel for channel in range(count) if channel != opacity]]
    if header.colour_space == _CMYK:
        colours = rgb_of_cmyk(colours, 2**bits - 1)
    elif colours.shape[2] not in (1, 3):
        raise ImageError("Unsupported", f"a JPEG 2000 with {colours.shape[2]} colours is not read; convert it to PNG")
    return Raster(colours, full, alpha, opaque=2**bits - 1, premultiplied=header.premultiplied)
