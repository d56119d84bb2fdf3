"""Checks the compressed frames of a DICOM image before they are decoded, and decodes lossy JPEG."""

import struct

import imagecodecs
import numpy as np
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
)

from medfocus.stages.dicom.layout import Layout
from medfocus.stages.formats import jpeg, jpeg2000
from medfocus.stages.formats.codec import decode_samples
from medfocus.stages.formats.picture import ImageError

LOSSY_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit)
LOSSLESS_JPEG = (JPEGLossless, JPEGLosslessSV1)
_JPEG_2000 = tuple(JPEG2000TransferSyntaxes)
_JPEG = (LOSSY_JPEG, LOSSLESS_JPEG, tuple(JPEGLSTransferSyntaxes))
# Transfer syntaxes by the marker of a JPEG's frame (ITU-T T.81 table B.1, T.87).
_BY_MARKER = {
    0xC0: JPEGBaseline8Bit,
    0xC1: JPEGExtended12Bit,
    0xC2: JPEGExtended12Bit,
    0xC3: JPEGLossless,
    0xF7: JPEGLSNearLossless,
}
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
# Bytes of padding that may follow the end of a codestream.
_PADDING = 64
_ADOBE, _JFIF = b"Adobe", b"JFIF"


def syntax_of(data: bytes, named: UID) -> UID:
    """The transfer syntax of a compressed frame: the one that the header names, unless the frame begins as another.

    Args:
        data: the frame.
        named: the transfer syntax that the header names.

    Raises:
        ImageError: Undecodable where the frame is none of a transfer syntax for single images.
    """
    if data.startswith(_START_OF_CODESTREAM):
        return named if named in _JPEG_2000 else JPEG2000
    if data.startswith(_START_OF_IMAGE):
        frame = jpeg.frame_of(data)
        actual = _BY_MARKER.get(frame.marker) if frame else None
        same = any(actual in family and named in family for family in _JPEG)
        return named if actual is None or same else actual
    if any(named in family for family in _JPEG):
        raise ImageError("Undecodable", "a compressed frame is no JPEG, which the transfer syntax says it is")
    if not named.is_compressed:
        raise ImageError("Undecodable", "the pixel data are in fragments, but the transfer syntax is not compressed")
    return named


def check_codestream(data: bytes, layout: Layout) -> None:
    """Check that a compressed frame is complete and as large as the header says, before memory is taken for it.

    Args:
        data: the frame.
        layout: what the header says.

    Raises:
        ImageError: Truncated or Undecodable.
    """
    if any(layout.transfer_syntax in family for family in _JPEG):
        if jpeg.is_truncated(data):
            raise ImageError("Truncated", "a compressed frame is truncated: its JPEG data do not end")
        frame = jpeg.frame_of(data)
        size = (frame.height, frame.width, frame.components) if frame else None
    elif layout.transfer_syntax in _JPEG_2000:
        try:
            header = jpeg2000.header_of(data)
        except (struct.error, IndexError) as error:
            raise ImageError("Undecodable", "the header of a compressed frame is damaged or cut off") from error
        size = header.height, header.width, header.components
        if _END_OF_IMAGE not in data[-_PADDING:]:
            raise ImageError("Truncated", "a compressed frame is truncated: its JPEG 2000 data do not end")
    else:
        return
    if size and size != (layout.rows, layout.columns, layout.samples):
        there = f"{size[1]} x {size[0]} pixels of {size[2]} samples"
        named = f"{layout.columns} x {layout.rows} of {layout.samples}"
        raise ImageError("Undecodable", f"a compressed frame has {there}, the header names {named}")


def decode_jpeg(data: bytes, layout: Layout) -> tuple[np.ndarray, str]:
    """Decode a JPEG of process 1, 2 or 4 (8 or 12 bits), without a change of its colours.

    Args:
        data: the frame.
        layout: what the header says.

    Returns:
        Uint8 or uint16 [H, W] or [H, W, 3], and the photometric interpretation that the codestream has.

    Raises:
        ImageError: Undecodable or MissingDecoder.
    """
    if layout.samples == 1:
        return decode_samples(imagecodecs.jpeg8_decode, data, "JPEG")[..., 0], layout.photometric
    samples = decode_samples(imagecodecs.jpeg8_decode, data, "JPEG", colorspace="YCBCR", outcolorspace="YCBCR")
    return samples, _colours_of(data, layout.photometric)


def _colours_of(data: bytes, named: str) -> str:
    """The photometric interpretation of a JPEG of three components: its own markers before the header's name."""
    for marker, start, stop in jpeg.segments_of(data):
        body = data[start:stop]
        if marker == 0xEE and body.startswith(_ADOBE) and len(body) >= 12:
            return "YBR_FULL" if body[11] == 1 else "RGB"
        if marker == 0xE0 and body.startswith(_JFIF):
            return "YBR_FULL"
        if marker in (0xC0, 0xC1, 0xC2):
            if body[6::3] in (b"RGB", b"rgb"):
                return "RGB"
            if len(set(body[7::3])) > 1:  # chroma of another size: no encoder does that to red, green and blue
                return "YBR_FULL"
    return "RGB" if named == "RGB" else "YBR_FULL"
