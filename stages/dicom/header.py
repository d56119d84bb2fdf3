"""Reads the attributes of a DICOM file without its pixel data (PS3.10 section 7)."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from medfocus.stages.formats.picture import ImageError

_PREAMBLE, _PREFIX = 128, b"DICM"
_META, _IDENTIFYING = 0x0002, 0x0008
_PIXEL_DATA = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_UNDEFINED = 0xFFFFFFFF
_VRS = {vr.value.encode() for vr in VR if len(vr.value) == 2}
# A file without a preamble begins with so many elements, none of which is longer.
_FIRST_ELEMENTS, _SHORT = 3, 1 << 16
# A header that is larger after inflation is cut here.
_MOST_INFLATED = 1 << 26
# The transfer syntax stands in the first bytes of a file.
_TRANSFER_SYNTAX_WITHIN = 4096


@dataclass(frozen=True)
class PixelElement:
    """The element that holds the pixels.

    Attributes:
        keyword: ``PixelData``, ``FloatPixelData`` or ``DoubleFloatPixelData``.
        vr: its value representation, empty where it is implicit.
        content: the bytes of the file, inflated where it is deflated.
        start: offset of the value in ``content``.
        length: bytes of the value; None where it consists of fragments (PS3.5 A.4).
    """

    keyword: str
    vr: str
    content: bytes
    start: int
    length: int | None


def is_dicom(first: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM object, with or without a preamble.

    Without a preamble, the bytes must begin with elements in ascending order, the first in group 0002 or 0008, whose
    value representations and lengths are possible.

    Args:
        first: at least the first 132 bytes of the file; 512 make it more certain.
    """
    return first[_PREAMBLE : _PREAMBLE + len(_PREFIX)] == _PREFIX or _is_without_preamble(first)


def read_header(stream: BinaryIO) -> Dataset:
    """Read the attributes before the pixel data.

    Args:
        stream: the file, seekable, at its start.

    Returns:
        The data set with its ``file_meta``. It does not need the stream any more. A value is converted when it is
        asked for, which raises errors of any class where it is damaged (``medfocus.stages.dicom.attributes``).

    Raises:
        ImageError: Undecodable or Truncated.
    """
    header, _ = _parse(stream, _MOST_INFLATED)
    header.buffer = header.filename = None  # the file itself and its name, which would be kept and pickled
    return header


def open_image(content: bytes, most_inflated: int) -> tuple[Dataset, PixelElement]:
    """Read the attributes of a file, and find its pixel data.

    Args:
        content: the bytes of the file.
        most_inflated: most bytes that a deflated file may have after inflation.

    Raises:
        ImageError: Undecodable, Truncated or TooManyPixels.
    """
    header, stream = _parse(io.BytesIO(content), most_inflated + 1)
    inflated = stream.getvalue()
    if len(inflated) > most_inflated and _is_deflated(content):
        raise ImageError("TooManyPixels", f"the deflated file holds more than {most_inflated} bytes")
    return header, _pixel_element(header, inflated, stream.tell())


def _is_without_preamble(first: bytes) -> bool:
    """Whether bytes begin with elements of a data set."""
    return any(_begins_with_elements(first, order) for order in "<>")


def _begins_with_elements(first: bytes, order: str) -> bool:
    """Whether bytes begin with elements of a data set, in the byte order ``<`` or ``>``."""
    place, before, count = 0, -1, 0
    while count < _FIRST_ELEMENTS and place + 8 <= len(first):
        group, element = struct.unpack_from(order + "HH", first, place)
        if count == 0 and group not in (_META, _IDENTIFYING):
            return False
        tag = group << 16 | element
        if tag <= before:
            return False
        vr = first[place + 4 : place + 6]
        if vr not in _VRS:
            (length,), head = struct.unpack_from(order + "L", first, place + 4), 8
            if order == ">":  # big endian is always explicit
                return False
        elif VR(vr.decode()) in EXPLICIT_VR_LENGTH_32:
            if place + 12 > len(first):
                break
            (length,), head = struct.unpack_from(order + "L", first, place + 8), 12
        else:
            (length,), head = struct.unpack_from(order + "H", first, place + 6), 8
        if length == _UNDEFINED:
            return count > 0
        if length > _SHORT:
            return False
        place, before, count = place + head + length, tag, count + 1
    return count > 0


def _parse(stream: Any, most_inflated: int) -> tuple[FileDataset, Any]:
    """The attributes before the pixel data, and the (inflated) stream, which stands where these begin."""
    start = stream.read(_TRANSFER_SYNTAX_WITHIN)
    stream.seek(0)
    if not is_dicom(start):
        raise ImageError("Undecodable", "the file is not DICOM")
    if start[_PREAMBLE : _PREAMBLE + len(_PREFIX)] == _PREFIX and _is_without_preamble(start):
        # The prefix is part of a value. pydicom would skip what stands before it.
        stream = io.BytesIO(bytes(_PREAMBLE) + _PREFIX + stream.read())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings may quote values
            if _is_deflated(start):
                return _parse_deflated(stream, most_inflated)
            header = dcmread(stream, force=True, stop_before_pixels=True)
    except (ImageError, MemoryError):
        raise
    except EOFError as error:
        raise ImageError("Truncated", "the DICOM file is truncated: it ends in the middle of an attribute") from error
    except Exception as error:  # pydicom raises errors of any class on damaged bytes
        raise ImageError("Undecodable", f"the attributes are damaged ({type(error).__name__})") from error
    if not header:
        raise ImageError("Undecodable", "the DICOM file has no attribute that can be read; copy it again")
    return header, stream


def _is_deflated(start: bytes) -> bool:
    """Whether the file meta information names the deflated transfer syntax."""
    name = b"\x02\0\x10\0UI" + struct.pack("<H", len(DeflatedExplicitVRLittleEndian))
    return name + DeflatedExplicitVRLittleEndian.encode() in start[:_TRANSFER_SYNTAX_WITHIN]


def _parse_deflated(stream: BinaryIO, most_inflated: int) -> tuple[FileDataset, io.BytesIO]:
    """Read a deflated file (PS3.5 A.5). pydicom would inflate it without a bound."""
    preamble = stream.read(_PREAMBLE + len(_PREFIX))
    meta = FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != _META))
    inflated = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), most_inflated))
    attributes = read_dataset(inflated, False, True, stop_when=lambda tag, vr, length: int(tag) in _PIXEL_DATA)
    return FileDataset(inflated, attributes, preamble[:_PREAMBLE], meta, False, True), inflated


def _pixel_element(header: Dataset, content: bytes, place: int) -> PixelElement:
    """Read the head of the element at the offset ``place``."""
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    head = content[place : place + 12]
    if len(head) < 8:
        raise ImageError("Undecodable", "the object holds no pixel data")
    group, element = struct.unpack_from(order + "HH", head)
    keyword = _PIXEL_DATA.get(group << 16 | element)
    if keyword is None:
        raise ImageError("Undecodable", "the object holds no pixel data")
    vr = "" if implicit else head[4:6].decode("latin-1")
    if implicit:
        size, (length,) = 8, struct.unpack_from(order + "L", head, 4)
    elif vr in EXPLICIT_VR_LENGTH_32 and len(head) == 12:
        size, (length,) = 12, struct.unpack_from(order + "L", head, 8)
    else:
        size, (length,) = 8, struct.unpack_from(order + "H", head, 6)
    return PixelElement(keyword, vr, content, place + size, None if length == _UNDEFINED else length)
