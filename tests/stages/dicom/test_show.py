"""What is shown of DICOM images made here, against values computed by hand from the formulas of PS3.3."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels import convert_color_space

from medfocus.stages import dicom
from medfocus.stages.formats.picture import ImageError
from tests.stages.dicom.objects import DEEP, WHOLE, frames_of, image, item, lut, ramp, shown, written
from tests.stages.dicom.reference import resampled


def by_linear(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.2.1, as it stands there, with 0 and 1 as the ends."""
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if value > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (value - (centre - 0.5)) / (width - 1) + 0.5


def by_linear_exact(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.2."""
    if value <= centre - width / 2:
        return 0.0
    return 1.0 if value > centre + width / 2 else (value - centre) / width + 0.5


def by_sigmoid(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + math.exp(min(-4 * (value - centre) / width, 700)))


FORMULAS = {"LINEAR": by_linear, "LINEAR_EXACT": by_linear_exact, "SIGMOID": by_sigmoid}


def test_a_window_of_one_is_a_threshold() -> None:
    pixels = ramp(0, 64)
    assert np.array_equal(shown(pixels, WindowCenter=32, WindowWidth=1), np.where(pixels > 31.5, 255, 0))


def test_a_window_by_hand() -> None:
    """Of the centre 40 and the width 401: black up to -160.5, white from 239.5."""
    pixels = np.array([[-161, -160, 39, 40, 239, 240]], "i2")
    picture = shown(pixels, WindowCenter=40, WindowWidth=401)
    assert picture.tolist() == [[0, 0, 127, 128, 255, 255]]


@settings(max_examples=60, deadline=None)
@given(
    function=st.sampled_from(sorted(FORMULAS)),
    centre=st.integers(-300, 300),
    width=st.integers(1, 600),
    slope=st.sampled_from([1, 2, 0.5, -1, -0.25]),
    intercept=st.integers(-200, 200),
    inverse=st.booleans(),
)
def test_windows_follow_the_formulas(
    function: str, centre: int, width: int, slope: float, intercept: int, inverse: bool
) -> None:
    pixels = ramp(-512, 512, "i2")
    content = written(
        image(
            pixels,
            WindowCenter=centre,
            WindowWidth=width,
            VOILUTFunction=function,
            RescaleSlope=slope,
            RescaleIntercept=intercept,
            PhotometricInterpretation="MONOCHROME1" if inverse else "MONOCHROME2",
        )
    )
    wanted = np.array(
        [[FORMULAS[function](value * slope + intercept, centre, width) for value in row] for row in pixels]
    )
    wanted = (1 - wanted if inverse else wanted) * 255
    (frame,) = frames_of(content)
    assert np.abs(frame.pixels - wanted).max() <= 0.5 + 1e-6
    (deep,) = frames_of(content, DEEP)
    assert deep.pixels.dtype == np.uint16 and deep.window is not None
    low, high = deep.window[0] - deep.window[1] / 2, deep.window[0] + deep.window[1] / 2
    steps = deep.pixels.astype(float)
    again = np.clip((steps - low) / (high - low), 0, 1) if high > low else (steps > low).astype(float)
    assert np.abs(np.round(again * 255) - frame.pixels).max() <= (1 if function == "SIGMOID" else 0)
    if function != "SIGMOID":  # without loss
        assert len(np.unique(deep.pixels)) == len(np.unique(pixels))


def test_of_several_windows_the_first_or_the_named_one_is_used() -> None:
    pixels = ramp(0, 1024)
    header = image(pixels, WindowCenter=[100, 500], WindowWidth=[50, 300])
    for index, (centre, width) in enumerate([(100, 50), (500, 300), (100, 50)]):
        (frame,) = frames_of(written(header), dicom.Display(max_pixels=10**6, window=index))
        wanted = np.array([[by_linear(value, centre, width) for value in row] for row in pixels])
        assert np.abs(frame.pixels - wanted * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_without_width_is_none(width: int) -> None:
    pixels = ramp(0, 2048)
    picture = shown(pixels, WindowCenter=100, WindowWidth=width)
    low, high = np.percentile(pixels, (0.5, 99.5))
    assert np.abs(picture - np.clip((pixels - low) / (high - low), 0, 1) * 255).max() <= 0.5 + 1e-6


def test_an_unknown_window_function_is_refused() -> None:
    with pytest.raises(ImageError, match="function") as caught:
        shown(ramp(0, 64), WindowCenter=32, WindowWidth=10, VOILUTFunction="CUBIC")
    assert caught.value.kind == "Unsupported"


def test_without_a_window_8_bits_are_shown_by_value_and_more_by_percentiles() -> None:
    shallow = ramp(10, 200, "u1")
    assert np.array_equal(shown(shallow), shallow)
    assert np.array_equal(shown(shallow, PhotometricInterpretation="MONOCHROME1"), 255 - shallow)
    four = ramp(0, 16, "u1")
    assert np.array_equal(shown(four, BitsStored=4), np.round(four * 17))
    deep = np.random.default_rng(0).gamma(2, 300, (70, 90)).astype("u2")
    low, high = np.percentile(deep, (0.5, 99.5))
    assert np.abs(shown(deep) - np.clip((deep - low) / (high - low), 0, 1) * 255).max() <= 0.5 + 1e-6


def test_padding_is_black_and_not_in_the_window() -> None:
    pixels = np.random.default_rng(1).integers(-100, 900, (64, 64)).astype("i2")
    padded = pixels.copy()
    padded[:20], padded[20:30] = -2000, -1990
    low, high = np.percentile(pixels[30:], (0.5, 99.5))
    wanted = np.clip((pixels - low) / (high - low), 0, 1) * 255
    wanted[:30] = 0
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        attributes = {"PhotometricInterpretation": photometric, "PixelPaddingRangeLimit": -1990}
        picture = shown(padded, PixelPaddingValue=-2000, **attributes)
        expected = wanted if photometric == "MONOCHROME2" else np.where(wanted > 0, 255 - wanted, 255)
        expected[:30] = 0
        assert np.abs(picture - expected).max() <= 0.5 + 1e-6


def test_padding_is_black_in_16_bits_too() -> None:
    pixels = ramp(0, 4096)
    header = image(pixels, BitsStored=12, WindowCenter=1000, WindowWidth=8000, PixelPaddingValue=100)
    (frame,), (deep,) = frames_of(written(header)), frames_of(written(header), DEEP)
    low, high = deep.window[0] - deep.window[1] / 2, deep.window[0] + deep.window[1] / 2
    again = np.round(np.clip((deep.pixels - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(again, frame.pixels)
    assert (frame.pixels == 0).sum() == (pixels == 100).sum()


def test_padding_out_of_the_range_of_the_samples_pads_nothing() -> None:
    pixels = ramp(0, 4096)
    assert np.array_equal(shown(pixels, BitsStored=12, PixelPaddingValue=63536), shown(pixels, BitsStored=12))


def test_unused_bits_are_ignored() -> None:
    pixels = ramp(0, 4096)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = shown(pixels, BitsStored=12, **window)
    assert np.array_equal(shown(pixels | 0xF000, BitsStored=12, **window), plain)
    assert np.array_equal(shown(pixels << 4, BitsStored=12, HighBit=15, **window), plain)


@pytest.mark.parametrize("first", [0, 100, -50])
def test_a_modality_lut(first: int) -> None:
    entries = [int(1000 * np.sqrt(place)) for place in range(256)]
    pixels = ramp(-128, 384, "i2")
    picture = shown(pixels, ModalityLUTSequence=[lut(first, entries, 16)], WindowCenter=8000, WindowWidth=16000)
    units = np.array(entries)[np.clip(pixels - first, 0, 255)]
    wanted = np.array([[by_linear(value, 8000, 16000) for value in row] for row in units])
    assert np.abs(picture - wanted * 255).max() <= 0.5 + 1e-6


def test_the_modality_lut_of_angiography_is_not_for_display() -> None:
    tables = [lut(0, list(range(255, -1, -1)), 8)]
    window = {"WindowCenter": 128, "WindowWidth": 256, "ModalityLUTSequence": tables}
    picture = shown(ramp(0, 256), SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1", **window)
    assert np.array_equal(picture, ramp(0, 256))
    assert np.array_equal(shown(ramp(0, 256), **window), 255 - ramp(0, 256))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_voi_lut_comes_before_a_window(bits: int, inverse: bool) -> None:
    entries = [int((2**bits - 1) * (place / 511) ** 2) for place in range(512)]
    pixels = ramp(0, 1024)
    header = image(
        pixels,
        VOILUTSequence=[lut(200, entries, bits)],
        WindowCenter=100,
        WindowWidth=50,
        RescaleSlope=1,
        RescaleIntercept=100,
        PresentationLUTShape="INVERSE" if inverse else "IDENTITY",
    )
    brightness = np.array(entries)[np.clip(pixels.astype(int) + 100 - 200, 0, 511)] / (2**bits - 1)
    brightness = 1 - brightness if inverse else brightness
    (frame,), (deep,) = frames_of(written(header)), frames_of(written(header), DEEP)
    assert np.abs(frame.pixels - brightness * 255).max() <= 0.5 + 1e-6
    assert deep.window == ((2**bits - 1) / 2, 2**bits - 1)
    assert np.array_equal(deep.pixels, np.round(brightness * (2**bits - 1)))


def test_a_voi_lut_of_bytes() -> None:
    found = lut(0, list(range(0, 256)), 8)
    found.LUTData = bytes(range(256))
    assert np.array_equal(shown(ramp(0, 256), VOILUTSequence=[found]), ramp(0, 256))


@pytest.mark.parametrize("entries", [[1, 2, 3], []])
def test_a_damaged_lut_is_refused(entries: list[int]) -> None:
    found = lut(0, [0] * 64, 8)
    found.LUTData = np.array(entries, "<u2").tobytes()
    with pytest.raises(ImageError, match="look-up table"):
        shown(ramp(0, 64), VOILUTSequence=[found])


@pytest.mark.parametrize(
    ("photometric", "shape", "inverse"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_the_presentation_shape_and_monochrome1_invert_once(photometric: str, shape: str | None, inverse: bool) -> None:
    attributes = {} if shape is None else {"PresentationLUTShape": shape}
    pixels = ramp(0, 256)
    picture = shown(pixels, PhotometricInterpretation=photometric, WindowCenter=128, WindowWidth=256, **attributes)
    plain = shown(pixels, WindowCenter=128, WindowWidth=256)
    assert np.array_equal(picture, 255 - plain if inverse else plain)


def test_functional_groups_of_a_frame_come_before_those_of_all() -> None:
    pixels = np.stack([ramp(0, 1024)] * 3)

    def window(centre: int, width: int) -> list:
        return [item(WindowCenter=centre, WindowWidth=width)]

    shared = item(
        FrameVOILUTSequence=window(500, 300),
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-10)],
        PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.7])],
    )
    frames = [item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, 5 * number])]) for number in range(3)]
    frames[1].FrameVOILUTSequence = window(100, 50)
    frames[2].PixelValueTransformationSequence = [item(RescaleSlope=1, RescaleIntercept=0)]
    header = image(
        pixels,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        WindowCenter=1,
        WindowWidth=2,
        PixelSpacing=[9, 9],
    )
    found = frames_of(written(header))
    for frame, (centre, width, slope, intercept) in zip(
        found, [(500, 300, 2, -10), (100, 50, 2, -10), (500, 300, 1, 0)], strict=True
    ):
        values = pixels[0] * float(slope) + intercept
        wanted = np.array([[by_linear(value, centre, width) for value in row] for row in values])
        assert np.abs(frame.pixels - wanted * 255).max() <= 0.5 + 1e-6
        assert frame.spacing == (0.7, 0.7)
        assert frame.position == (1, 2, 5 * frame.number)


def test_the_choice_of_frames() -> None:
    content = written(image(np.stack([np.full((4, 4), number, "u1") for number in range(10)])))
    for choice, wanted in (
        (dicom.FrameChoice(), range(10)),
        (dicom.FrameChoice("middle"), [5]),
        (dicom.FrameChoice("every", 4), [0, 4, 8]),
    ):
        frames = frames_of(content, WHOLE, choice)
        assert [frame.number for frame in frames] == [int(frame.pixels[0, 0]) for frame in frames] == list(wanted)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette(bits: int) -> None:
    table = np.random.default_rng(2).integers(0, 256, (64, 3), dtype=np.uint16)
    stored = table * 257 if bits == 16 else table
    header = image(ramp(0, 256, "u1"), PhotometricInterpretation="PALETTE COLOR")
    for place, name in enumerate(("Red", "Green", "Blue")):
        setattr(header, f"{name}PaletteColorLookupTableDescriptor", [64, 100, bits])
        data = stored[:, place].astype("<u2").tobytes() if bits == 16 else stored[:, place].astype("u1").tobytes()
        setattr(header, f"{name}PaletteColorLookupTableData", data)
        header[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        header[f"{name}PaletteColorLookupTableData"].VR = "OW"
    (frame,) = frames_of(written(header))
    assert np.array_equal(frame.pixels, table[np.clip(ramp(0, 256, "i2") - 100, 0, 63)])


def test_a_palette_that_is_missing_is_told() -> None:
    with pytest.raises(ImageError, match="palette is missing"):
        shown(ramp(0, 256, "u1"), PhotometricInterpretation="PALETTE COLOR")


def test_colours_are_converted_and_planes_put_together() -> None:
    colours = np.random.default_rng(3).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert np.array_equal(shown(colours), colours)
    planes = np.moveaxis(colours, 2, 0).tobytes()
    assert np.array_equal(shown(colours, data=planes, PlanarConfiguration=1), colours)
    ybr = convert_color_space(colours, "YBR_FULL", "RGB")
    assert np.abs(shown(colours, PhotometricInterpretation="YBR_FULL").astype(int) - ybr).max() <= 1
    halves = colours.copy()
    halves[:, 1::2, 1:] = halves[:, ::2, 1:]  # one chroma for two pixels
    pairs = np.dstack([halves[:, ::2, :1], halves[:, 1::2, :1], halves[:, ::2, 1:]])
    picture = shown(halves, data=pairs.tobytes(), PhotometricInterpretation="YBR_FULL_422")
    assert np.abs(picture.astype(int) - convert_color_space(halves, "YBR_FULL", "RGB")).max() <= 1
    deep = colours.astype("u2") * 257
    assert np.array_equal(shown(deep), colours)


def test_narrow_ybr() -> None:
    """White and black of the narrow range, and full red (ITU-R BT.601)."""
    pixels = np.array([[[235, 128, 128], [16, 128, 128], [81, 90, 240]]], np.uint8)
    picture = shown(pixels, PhotometricInterpretation="YBR_PARTIAL_422", data=pixels.tobytes())
    assert np.abs(picture.astype(int) - [[[255, 255, 255], [0, 0, 0], [255, 0, 0]]]).max() <= 2


@pytest.mark.parametrize(
    ("attributes", "shape", "spacing"),
    [
        ({"PixelSpacing": [2, 1]}, (16, 6), (1, 1)),
        ({"PixelSpacing": [1, 2]}, (8, 12), (1, 1)),
        ({"ImagerPixelSpacing": [0.15, 0.1]}, (12, 6), (0.1, 0.1)),
        ({"PixelAspectRatio": [3, 2]}, (12, 6), None),
        ({"NominalScannedPixelSpacing": [0.1, 0.1]}, (8, 6), (0.1, 0.1)),
        ({"PixelSpacing": [0.7, 0.7], "ImagerPixelSpacing": [1, 1]}, (8, 6), (0.7, 0.7)),
        ({"PixelSpacing": [0.7, 0.7001]}, (8, 6), (0.7, 0.7001)),
        ({"PixelSpacing": [0, 0]}, (8, 6), None),
    ],
)
@pytest.mark.parametrize("display", [WHOLE, DEEP], ids=["8", "16"])
def test_pixels_become_square(attributes: dict, shape: tuple, spacing: tuple | None, display: dicom.Display) -> None:
    pixels = np.random.default_rng(4).integers(0, 4000, (8, 6)).astype("u2")
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    (frame,) = frames_of(written(image(pixels, **window, **attributes)), display)
    assert frame.pixels.shape == shape
    assert frame.spacing == (pytest.approx(spacing) if spacing else None)
    if display is WHOLE:
        assert np.array_equal(frame.pixels, resampled(shown(pixels, **window), shape))


def test_overlays_are_off() -> None:
    pixels = ramp(0, 256, "u1")
    header = image(pixels)
    header.add_new(0x60000010, "US", pixels.shape[0])
    header.add_new(0x60000011, "US", pixels.shape[1])
    header.add_new(0x60003000, "OW", bytes([255]) * (pixels.size // 8))
    (frame,) = frames_of(written(header))
    assert np.array_equal(frame.pixels, pixels)


def test_floating_point_samples() -> None:
    pixels = np.random.default_rng(5).normal(0, 1, (32, 32)).astype(np.float32)
    pixels[0, 0] = np.nan
    header = image(ramp(0, 1024, "u2")[:, :32], PixelData=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
    header.Rows, header.Columns, header.BitsAllocated = 32, 32, 32
    header.FloatPixelData = pixels.tobytes()
    (frame,), (deep,) = frames_of(written(header)), frames_of(written(header), DEEP)
    low, high = np.percentile(pixels[np.isfinite(pixels)], (0.5, 99.5))
    wanted = np.nan_to_num(np.clip((pixels - low) / (high - low), 0, 1)) * 255
    assert np.abs(frame.pixels - wanted).max() <= 0.5 + 1e-4
    assert deep.pixels.dtype == np.uint16 and deep.pixels.max() == 65535
