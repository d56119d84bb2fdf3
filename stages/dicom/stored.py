"""Decodes the stored pixels of a DICOM image, frame by frame (PS3.5 section 8 and annex A)."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames, parse_basic_offsets, parse_fragments
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from medfocus.stages.dicom.attributes import value_of
from medfocus.stages.dicom.codestreams import LOSSLESS_JPEG, LOSSY_JPEG, check_codestream, decode_jpeg, syntax_of
from medfocus.stages.dicom.header import PixelElement
from medfocus.stages.dicom.layout import DEFLATED_FRAMES, Layout
from medfocus.stages.formats.frames import FrameChoice
from medfocus.stages.formats.picture import ImageError

# Plug-ins of pydicom in the order in which they are tried: the fastest first, the others as a second opinion.
_PLUGINS = ("pylibjpeg", "pyjpegls", "gdcm", "pillow", "pydicom")
# The transfer syntaxes of MPEG-2, MPEG-4 and HEVC, and of SMPTE 2110.
_VIDEO = ("1.2.840.10008.1.2.4.10", "1.2.840.10008.1.2.7.")
# The item that ends the fragments, and the bytes of a file in which it is looked for.
_SEQUENCE_END, _TRAILER = b"\xfe\xff\xdd\xe0", 1024


@dataclass(frozen=True)
class Stored:
    """The samples of a frame as they are stored.

    Attributes:
        number: place in the file, from 0.
        words: [H, W] or [H, W, 3]; unsigned integers that hold the bits of the samples, or floats.
        bits: bits of a word that belong to the sample.
        shift: bits of a word below the sample.
        signed: whether the sample is in two's complement.
        photometric: photometric interpretation, after the conversions that belong to the compression.
    """

    number: int
    words: np.ndarray
    bits: int
    shift: int
    signed: bool
    photometric: str

    def values(self, words: np.ndarray) -> np.ndarray:
        """The samples that words stand for, as int64 or float64 of the same shape."""
        if words.dtype.kind == "f":
            return words.astype(np.float64)
        values = words.astype(np.uint64) >> np.uint64(self.shift)
        values &= np.uint64(2**self.bits - 1)
        if not self.signed:
            return values.astype(np.int64)
        half = np.int64(1) << np.int64(self.bits - 1)
        return (values.view(np.int64) ^ half) - half


def stored_frames(header: Dataset, element: PixelElement, layout: Layout, choice: FrameChoice) -> Iterator[Stored]:
    """Decode the chosen frames, one at a time.

    Args:
        header: the attributes.
        element: the element that holds the pixels.
        layout: how they are stored.
        choice: which frames.

    Yields:
        The frames in their order.

    Raises:
        ImageError: Undecodable, Truncated, Unsupported or MissingDecoder.
    """
    syntax = layout.transfer_syntax
    if element.length is not None and (syntax == DEFLATED_FRAMES or syntax.is_compressed):
        raise ImageError("Undecodable", "the transfer syntax is compressed, but the pixel data are not in fragments")
    if element.length is not None:
        yield from _native_frames(element, layout, choice)
        return
    if syntax.startswith(_VIDEO):
        raise ImageError("Unsupported", "the pixel data are a video, which is not read; convert it to images")
    for number, data in _compressed_frames(header, element, layout, choice):
        yield _decode_compressed(number, data, element, layout)


def _native_frames(element: PixelElement, layout: Layout, choice: FrameChoice) -> Iterator[Stored]:
    """The frames of pixel data without compression."""
    assert element.length is not None
    there = len(element.content) - element.start
    expected = layout.bytes_of(layout.frames)
    if there < min(expected, element.length):
        raise ImageError("Truncated", f"the file is truncated: {there} of {element.length} bytes of pixel data")
    if element.length < expected:
        frames = element.length * 8 // layout.frame_bits
        text = f"the pixel data have {element.length} bytes ({frames} whole frames)"
        raise ImageError("Undecodable", f"{text}, the header promises {expected} bytes ({layout.frames} frames)")
    if layout.photometric == "YBR_FULL_422" and element.length >= expected // 2 * 3:
        layout = replace(layout, photometric="YBR_FULL")  # not subsampled, in spite of the header
    data = memoryview(element.content)[element.start : element.start + element.length]
    for number in choice.of(layout.frames):
        yield _native_frame(data, number, number, element, layout)


def _native_frame(data: memoryview, number: int, place: int, element: PixelElement, layout: Layout) -> Stored:
    """The frame at a place in pixel data without compression, as the frame of a number."""
    if layout.is_packed:
        return _with_unused_bits(number, _unpack(data, place, layout), layout, layout.photometric)
    samples, photometric = _decode(data, place, element, layout)
    return _with_unused_bits(number, samples, layout, photometric)


def _unpack(data: memoryview, place: int, layout: Layout) -> np.ndarray:
    """The samples of a frame of 12 bits allocated, uint16 [H, W]: the lower 8 bits of the first sample come first."""
    count = layout.rows * layout.columns
    if count % 2 or layout.samples > 1 or not layout.transfer_syntax.is_little_endian:
        raise ImageError("Unsupported", "samples of 12 bits are read only of grey, little endian and in even numbers")
    parts = np.frombuffer(data, np.uint8, count // 2 * 3, count // 2 * 3 * place).reshape(-1, 3).astype(np.uint16)
    samples = np.empty((count // 2, 2), np.uint16)
    samples[:, 0] = parts[:, 0] | (parts[:, 1] & 0x0F) << 8
    samples[:, 1] = parts[:, 1] >> 4 | parts[:, 2] << 4
    return samples.reshape(layout.rows, layout.columns)


def _with_unused_bits(number: int, samples: np.ndarray, layout: Layout, photometric: str) -> Stored:
    """A frame whose words hold the sample where the header says."""
    words = samples if samples.dtype.kind == "f" else samples.view(f"{samples.dtype.byteorder}u{samples.itemsize}")
    words = words if words.dtype.isnative else words.astype(words.dtype.newbyteorder("="))
    room = 8 * words.itemsize
    shift = layout.high + 1 - layout.stored if layout.high < room else 0
    return Stored(number, words, min(layout.stored, room), shift, layout.signed, photometric)


def _decode(data: Any, place: int, element: PixelElement, layout: Layout, plugin: str = "") -> tuple[np.ndarray, str]:
    """Decode the frame at a place in the value of the pixel data with pydicom.

    Returns:
        Samples [H, W] or [H, W, 3], and their photometric interpretation.
    """
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": layout.frames,
        "samples_per_pixel": layout.samples,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "photometric_interpretation": layout.photometric,
        "planar_configuration": int(layout.planar),
        "pixel_keyword": element.keyword,
        "pixel_vr": element.vr or "OW",
        "correct_unused_bits": False,
        "view_only": True,
    }
    decoder = get_decoder(layout.transfer_syntax)
    samples, properties = decoder.as_array(data, index=place, raw=True, decoding_plugin=plugin, **options)
    return samples, str(properties["photometric_interpretation"])


def _compressed_frames(
    header: Dataset, element: PixelElement, layout: Layout, choice: FrameChoice
) -> Iterator[tuple[int, bytes]]:
    """The number and the codestream of each chosen frame."""
    value = io.BytesIO(element.content)
    value.seek(element.start)
    try:
        parse_basic_offsets(value)
        fragments, places = parse_fragments(value)
    except Exception as error:
        raise ImageError("Undecodable", "the fragments of the pixel data are damaged") from error
    if places and places[-1] + 8 + _length_at(element.content, places[-1]) > len(element.content):
        raise ImageError("Truncated", "the file is truncated: its last fragment of pixel data does not end")
    if fragments < layout.frames:
        text = f"the pixel data have {fragments} fragments, the header promises {layout.frames} frames"
        raise ImageError("Undecodable" if _SEQUENCE_END in element.content[-_TRAILER:] else "Truncated", text)
    table, lengths = value_of(header, "ExtendedOffsetTable"), value_of(header, "ExtendedOffsetTableLengths")
    value.seek(element.start)
    offsets = (table, lengths) if table and lengths else None
    frames = generate_frames(value, number_of_frames=layout.frames, extended_offsets=offsets)
    wanted = choice.of(layout.frames)
    number = -1
    try:
        for number, data in enumerate(frames):
            if number in wanted:
                yield number, data
            if number == wanted[-1]:
                return
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom raises errors of several classes on wrong offset tables
        raise ImageError("Undecodable", "the fragments of the pixel data are damaged") from error
    text = f"the pixel data hold {number + 1} frames, the header promises {layout.frames}"
    raise ImageError("Undecodable", text)


def _length_at(content: bytes, place: int) -> int:
    """The length in the head of the item at a place."""
    return int.from_bytes(content[place + 4 : place + 8], "little")


def _decode_compressed(number: int, data: bytes, element: PixelElement, layout: Layout) -> Stored:
    """Decode one frame; by the second opinion where the first decoder fails."""
    if not data:
        raise ImageError("Truncated", "a compressed frame is empty")
    if layout.transfer_syntax == DEFLATED_FRAMES:
        return _inflate(number, data, element, replace(layout, frames=1))
    syntax = syntax_of(data, layout.transfer_syntax)
    layout = replace(layout, transfer_syntax=syntax, frames=1)
    check_codestream(data, layout)
    if syntax in LOSSY_JPEG:
        samples, photometric = decode_jpeg(data, layout)
        bits = min(layout.stored, 8 * samples.itemsize)
        return Stored(number, samples, bits, 0, layout.signed, photometric)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError("Unsupported", f"the transfer syntax {syntax} is not read") from error
    if not decoder.available_plugins:
        needs = " or ".join(decoder.missing_dependencies)
        raise ImageError("MissingDecoder", f"the transfer syntax {syntax} needs a package: {needs}; install one")
    value, errors = encapsulate([data], has_bot=False), []
    for plugin in (plugin for plugin in _PLUGINS if plugin in decoder.available_plugins):
        try:
            samples, photometric = _decode(value, 0, element, layout, plugin)
        except MemoryError:
            raise
        except Exception as error:  # each plug-in has its own errors
            errors.append(f"{plugin}: {type(error).__name__}")
            continue
        if syntax == RLELossless or syntax in LOSSLESS_JPEG:
            return _with_unused_bits(number, samples, layout, photometric)
        words = samples.view(f"u{samples.itemsize}")
        return Stored(number, words, 8 * samples.itemsize, 0, samples.dtype.kind == "i", photometric)
    text = f"a frame of the transfer syntax {syntax} is damaged: no decoder reads it ({', '.join(errors)})"
    raise ImageError("Undecodable", text)


def _inflate(number: int, data: bytes, element: PixelElement, layout: Layout) -> Stored:
    """Inflate one frame."""
    native = replace(layout, transfer_syntax=ExplicitVRLittleEndian)
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, native.bytes_of(1))
    except zlib.error as error:
        raise ImageError("Undecodable", "a deflated frame is damaged") from error
    if len(inflated) < native.bytes_of(1):
        raise ImageError("Truncated", f"a deflated frame holds {len(inflated)} of {native.bytes_of(1)} bytes")
    return _native_frame(memoryview(inflated), number, 0, element, native)
