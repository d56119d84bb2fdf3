"""DICOM files as they are found: without a preamble, compressed, damaged, and what is no DICOM at all."""

import io
import pickle
import struct
import time
import tracemalloc
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medfocus.stages import dicom
from medfocus.stages.dicom import stored
from medfocus.stages.formats.picture import ImageError
from tests.stages.dicom.objects import CT, WHOLE, frames_of, image, ramp, written

PIXELS = np.random.default_rng(0).integers(0, 4096, (40, 64)).astype("u2")
WINDOW: dict[str, Any] = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
# pydicom does not write this transfer syntax: it is put in place of another one of the same length.
DEFLATED_FRAMES, _IN_ITS_PLACE = b"1.2.840.10008.1.2.8.1\0", JPEG2000Lossless


def plain() -> np.ndarray:
    """The picture of PIXELS without compression."""
    return frames_of(written(image(PIXELS, **WINDOW)))[0].pixels


def error_of(content: bytes, display: dicom.Display = WHOLE) -> ImageError:
    with pytest.raises(ImageError) as caught:
        frames_of(content, display)
    return caught.value


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_each_encoding_of_the_attributes(syntax: UID) -> None:
    content = written(image(PIXELS, syntax=syntax, **WINDOW))
    assert dicom.is_dicom(content[:512])
    assert np.array_equal(frames_of(content)[0].pixels, plain())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("meta", [False, True])
def test_without_a_preamble(syntax: UID, meta: bool) -> None:
    content = written(image(PIXELS, syntax=syntax, **WINDOW))[132:]
    if not meta:
        (length,) = struct.unpack("<L", content[8:12])
        content = content[12 + length :]
    assert dicom.is_dicom(content[:512])
    assert dicom.is_dicom(content[:132])
    assert np.array_equal(frames_of(content)[0].pixels, plain())


def test_the_prefix_of_a_preamble_inside_of_a_value() -> None:
    header = image(PIXELS, **WINDOW)
    content = written(header)[132:]
    (length,) = struct.unpack("<L", content[8:12])
    start = content[12 + length :]
    header.SOPClassUID = CT
    place = start.index(b"CT", 60)  # Modality, behind which a value is moved to byte 128
    filling = 128 - place - 2 - 8
    value = b"x" * filling + b"DICM" + b"y" * (filling % 2)
    moved = start[: place + 2] + struct.pack("<HH2sH", 8, 0x70, b"LO", len(value)) + value + start[place + 2 :]
    assert moved[128:132] == b"DICM"
    assert np.array_equal(frames_of(moved)[0].pixels, plain())


@pytest.mark.parametrize(
    "content",
    [b"", b"a text that ends in .dcm\n" * 40, b"\x08\x00" + b"no element" * 50, bytes(600), b"\x89PNG\r\n\x1a\n" * 60],
)
def test_what_is_no_dicom(content: bytes) -> None:
    assert not dicom.is_dicom(content[:512])
    with pytest.raises(ImageError, match="not DICOM"):
        dicom.read_header(io.BytesIO(content))


class Counted(io.BytesIO):
    """A stream that counts what is read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


def test_a_header_is_read_without_pixels_and_does_not_need_its_stream() -> None:
    content = written(image(np.zeros((1000, 1000), "u2"), **WINDOW))
    with Counted(content) as stream:
        found = dicom.read_header(stream)
        assert stream.count < 20_000
    found = pickle.loads(pickle.dumps(found))
    assert (found.Rows, found.file_meta.TransferSyntaxUID) == (1000, ExplicitVRLittleEndian)
    assert [element.keyword for element in found if element.tag.group == 0x0028][-1] == "WindowWidth"
    times = []
    for _ in range(20):
        start = time.perf_counter()
        dicom.read_header(io.BytesIO(content))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002


def test_samples_of_12_bits_in_three_bytes_for_two() -> None:
    pairs = PIXELS.reshape(-1, 2).astype(np.uint32)
    data = (pairs[:, 0] | pairs[:, 1] << 12).astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    attributes = WINDOW | {"BitsAllocated": 12}
    assert np.array_equal(frames_of(written(image(PIXELS, data=data, **attributes)))[0].pixels, plain())
    twice = image(np.stack([PIXELS[::-1], PIXELS]), data=data * 2, **attributes)
    assert np.array_equal(frames_of(written(twice))[1].pixels, plain())


def test_one_frame_is_in_memory_at_a_time() -> None:
    content = written(image(np.zeros((100, 256, 256), "u2"), WindowCenter=1, WindowWidth=9))
    tracemalloc.start()
    try:
        for _ in dicom.read_frames(content, dicom.FrameChoice(), WHOLE):
            pass
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # of 13 million
    finally:
        tracemalloc.stop()


COMPRESSED = {
    "JPEG 2000": (JPEG2000Lossless, lambda frame: imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k")),
    "HTJ2K": (HTJ2KLossless, lambda frame: imagecodecs.htj2k_encode(frame)),
    "JPEG-LS": (JPEGLSLossless, imagecodecs.jpegls_encode),
    "lossless JPEG": (
        JPEGLosslessSV1,
        lambda frame: imagecodecs.jpeg8_encode(frame, lossless=True, predictor=1, bitspersample=12),
    ),
    "deflated frames": (_IN_ITS_PLACE, lambda frame: zlib.compress(frame.tobytes(), wbits=-15)),
    "RLE": (
        RLELossless,
        lambda frame: RLELosslessEncoder.encode(
            frame.tobytes(),
            rows=40,
            columns=64,
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=12,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
        ),
    ),
}


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("table", [False, True], ids=["no offsets", "offsets"])
def test_compression_without_loss(name: str, table: bool) -> None:
    syntax, encode = COMPRESSED[name]
    frames = [PIXELS, PIXELS[::-1].copy(), PIXELS[:, ::-1].copy()]
    value = encapsulate([encode(frame) for frame in frames], has_bot=table)
    header = image(np.stack(frames), data=value, **WINDOW)
    header.file_meta.TransferSyntaxUID = syntax
    header["PixelData"].is_undefined_length = True
    content = written(header)
    if name == "deflated frames":
        content = content.replace(_IN_ITS_PLACE.encode(), DEFLATED_FRAMES)
    found, picture = frames_of(content), plain()
    for frame, wanted in zip(found, (picture, picture[::-1], picture[:, ::-1]), strict=True):
        assert np.array_equal(frame.pixels, wanted)
    (middle,) = frames_of(content, WHOLE, dicom.FrameChoice("middle"))
    assert middle.number == 1 and np.array_equal(middle.pixels, picture[::-1])


def jpeg(pixels: np.ndarray, syntax: UID, data: bytes, frames: int = 1, **attributes: Any) -> bytes:
    header = image(pixels, data=encapsulate([data] * frames), **attributes)
    header.file_meta.TransferSyntaxUID = syntax
    header["PixelData"].is_undefined_length = True
    return written(header)


def test_jpeg_of_12_bits() -> None:
    pixels = np.round(2000 + 1500 * np.sin(np.arange(4096).reshape(64, 64) / 300)).astype("u2")
    data = imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12)
    (frame,) = frames_of(jpeg(pixels, JPEGExtended12Bit, data, **WINDOW))
    wanted = frames_of(written(image(pixels, **WINDOW)))[0].pixels
    assert np.abs(frame.pixels.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("stored_as", ["YCbCr", "YCbCr of smaller chroma", "RGB"])
def test_the_colours_of_a_jpeg_are_those_of_its_codestream(photometric: str, stored_as: str) -> None:
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16], colours[16:] = (200, 40, 60), (30, 90, 220)
    options = {
        "YCbCr": {"outcolorspace": "YCBCR", "subsampling": "444"},
        "YCbCr of smaller chroma": {"outcolorspace": "YCBCR", "subsampling": "420"},
        "RGB": {"outcolorspace": "RGB"},
    }[stored_as]
    data = imagecodecs.jpeg8_encode(colours, level=95, colorspace="RGB", **options)
    (frame,) = frames_of(jpeg(colours, JPEGBaseline8Bit, data, PhotometricInterpretation=photometric))
    assert np.abs(frame.pixels.astype(int) - colours).mean() < 4


def test_a_frame_of_another_compression_than_the_transfer_syntax_says() -> None:
    data = imagecodecs.jpegls_encode(PIXELS)
    for syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        assert np.array_equal(frames_of(jpeg(PIXELS, syntax, data, **WINDOW))[0].pixels, plain())


def test_a_second_decoder_is_asked_where_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    syntax, encode = COMPRESSED["JPEG 2000"]
    content, picture = jpeg(PIXELS, syntax, encode(PIXELS), **WINDOW), plain()
    tried: list[str] = []
    decode = stored._decode

    def fail_first(*arguments: Any) -> Any:
        tried.append(arguments[4])
        if len(tried) == 1:
            raise RuntimeError
        return decode(*arguments)

    monkeypatch.setattr(stored, "_decode", fail_first)
    assert np.array_equal(frames_of(content)[0].pixels, picture)
    assert tried == ["pylibjpeg", "gdcm"]


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pydicom.pixels.get_decoder(HTJ2KLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0")})
    syntax, encode = COMPRESSED["HTJ2K"]
    error = error_of(jpeg(PIXELS, syntax, encode(PIXELS), **WINDOW))
    assert error.kind == "MissingDecoder" and "pylibjpeg-openjpeg" in str(error)


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "no rows": ({"Rows": None}, "Undecodable", "no rows"),
    "0 x 0": ({"Rows": 0, "Columns": 0}, "Undecodable", "0 x 0"),
    "too few bits": ({"BitsStored": 20}, "Undecodable", "20 bits of a sample in 16"),
    "no allocated bits": ({"BitsAllocated": None}, "Undecodable", "allocated"),
    "24 bits": ({"BitsAllocated": 24, "BitsStored": 12}, "Unsupported", "24 bits"),
    "more frames than data": ({"NumberOfFrames": 3}, "Undecodable", "1 whole frames"),
    "more rows than data": ({"Rows": 90}, "Undecodable", "promises"),
    "minus one frame": ({"NumberOfFrames": -1}, "Undecodable", "-1 frames"),
    "two samples": ({"SamplesPerPixel": 2}, "Undecodable", "2 samples"),
    "unknown colours": ({"PhotometricInterpretation": "HSV"}, "Unsupported", "photometric"),
    "no pixels": ({"PixelData": None}, "Undecodable", "no pixel data"),
    "slope of zero": ({"RescaleSlope": 0, "RescaleIntercept": 1}, "Undecodable", "slope"),
    "too large": ({"Rows": 60000, "Columns": 60000}, "TooManyPixels", "60000 x 60000"),
    "narrow pixels": ({"PixelSpacing": [1e-5, 1]}, "TooManyPixels", "pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_reason_of_what_is_refused(name: str) -> None:
    attributes, kind, text = BROKEN[name]
    error = error_of(written(image(PIXELS, **(WINDOW | attributes))))
    assert error.kind == kind and text in str(error), str(error)


@pytest.mark.parametrize("keyword", ["Rows", "BitsStored", "WindowCenter", "RescaleSlope", "PixelSpacing"])
def test_a_value_of_a_wrong_type_is_named_but_not_quoted(keyword: str) -> None:
    header = image(PIXELS, **WINDOW)
    header.RescaleSlope, header.RescaleIntercept, header.PixelSpacing = 1, 0, [1, 1]
    tag = header[keyword].tag
    del header[keyword]
    header.add_new(tag, "LO", "Doe^Jane")
    error = error_of(written(header))
    assert error.kind == "Undecodable" and keyword in str(error) and "Doe" not in str(error)


def test_a_file_that_is_cut_off_is_truncated() -> None:
    content = written(image(PIXELS, **WINDOW))
    for length in (len(content) - 1, len(content) - 3000):
        assert error_of(content[:length]).kind == "Truncated"
    syntax, encode = COMPRESSED["JPEG 2000"]
    content = jpeg(PIXELS, syntax, encode(PIXELS), **WINDOW)
    assert error_of(content[:-500]).kind == "Truncated"
    short = encode(PIXELS)[:-800]
    assert error_of(jpeg(PIXELS, syntax, short, **WINDOW)).kind == "Truncated"


def test_frames_fewer_than_promised_in_fragments() -> None:
    syntax, encode = COMPRESSED["JPEG-LS"]
    header = image(PIXELS, data=encapsulate([encode(PIXELS)] * 2), NumberOfFrames=5, **WINDOW)
    header.file_meta.TransferSyntaxUID = syntax
    header["PixelData"].is_undefined_length = True
    error = error_of(written(header))
    assert error.kind == "Undecodable" and "2 fragments, the header promises 5" in str(error)
    assert error_of(written(header)[:-8]).kind == "Truncated"  # without the end of the fragments


def test_a_codestream_that_is_larger_than_the_header_says_is_not_decoded() -> None:
    bomb = imagecodecs.jpeg2k_encode(np.zeros((3000, 3000), np.uint8), level=0, codecformat="j2k")
    error = error_of(jpeg(np.zeros((30, 30), "u1"), JPEG2000Lossless, bomb))
    assert error.kind == "Undecodable" and "3000 x 3000" in str(error)


def test_a_deflated_bomb_is_not_inflated() -> None:
    content = written(image(PIXELS, syntax=DeflatedExplicitVRLittleEndian, **WINDOW))
    start = 132 + 12 + struct.unpack("<L", content[140:144])[0]
    attributes = zlib.decompress(content[start:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    blocks = [packer.compress(attributes)] + [packer.compress(bytes(1 << 20)) for _ in range(90)]
    bomb = content[:start] + b"".join([*blocks, packer.flush()])
    assert dicom.read_header(io.BytesIO(bomb)).Rows == 40
    assert error_of(bomb, dicom.Display(max_pixels=10_000)).kind == "TooManyPixels"


def test_a_video_is_refused() -> None:
    error = error_of(jpeg(PIXELS, MPEG4HP41, b"\0\0\1\xba" * 10, **WINDOW))
    assert error.kind == "Unsupported" and "video" in str(error)


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        (CT, None),
        ("1.2.840.10008.5.1.4.1.1.481.1", None),  # RT Image
        ("1.2.840.10008.5.1.4.1.1.77.1.6", None),  # whole slide
        ("1.2.840.10008.5.1.4.1.1.30", None),  # parametric map
        ("1.2.840.10008.5.1.4.1.1.481.2", "radiotherapy object"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "key object selection"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "encapsulated document"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.66.1", "registration, segmentation or tracks"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "waveform"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.1.3.10", "directory (DICOMDIR)"),
        ("1.3.46.670589.11.0.0.12.1", None),  # private, with rows and columns
    ],
)
def test_the_kind_of_an_object(sop_class: str, kind: str | None) -> None:
    header = image(PIXELS, SOPClassUID=sop_class)
    assert dicom.not_an_image(dicom.read_header(io.BytesIO(written(header)))) == kind


def test_a_private_object_without_rows_is_no_image() -> None:
    header = image(PIXELS, SOPClassUID="1.3.46.670589.5.0.1.1", Rows=None)
    assert dicom.not_an_image(dicom.read_header(io.BytesIO(written(header)))) == "object without an image"


@settings(max_examples=300, deadline=None)
@given(places=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=8))
def test_damaged_bytes_give_a_picture_or_an_error(places: list[tuple[float, bytes]]) -> None:
    content = bytearray(written(image(ramp(0, 256), WindowCenter=100, WindowWidth=80, PixelSpacing=[1, 1])))
    for share, value in places:
        start = int(share * len(content))
        content[start : start + len(value)] = value
    try:
        header = dicom.read_header(io.BytesIO(bytes(content)))
        if dicom.not_an_image(header) is None:
            frames_of(bytes(content))
    except ImageError as error:
        assert error.kind and len(str(error)) > 10
