"""Pictures that are written as PNG, read again by other decoders and by the decode stage."""

import io

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from medfocus.stages.decode import READERS, Decode
from medfocus.stages.formats.encode import encode_png
from medfocus.stages.formats.frames import Display, FrameChoice
from tests.stages.formats import viewer
from tests.stages.formats.cases import COLOUR, shallow
from tests.stages.formats.test_formats import turned

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(
    st.integers(1, 40), st.integers(1, 40), st.just(3)
)


@settings(max_examples=100, deadline=None)
@given(pixels=st.sampled_from([np.uint8, np.uint16]).flatmap(lambda kind: arrays.arrays(kind, SHAPES)))
def test_a_png_is_without_loss(pixels: np.ndarray) -> None:
    content = encode_png(pixels)
    assert np.array_equal(imagecodecs.png_decode(content), pixels)
    if pixels.dtype == np.uint8:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_views_are_encoded() -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    assert np.array_equal(imagecodecs.png_decode(encode_png(pixels[::-2, ::3])), pixels[::-2, ::3])


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), "i2"), np.zeros((4, 4, 4), "u1"), np.zeros((0, 4), "u1"), np.zeros(4, "u1"), np.zeros((4, 4))],
    ids=["signed", "four channels", "empty", "flat", "float"],
)
def test_what_a_png_cannot_hold(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        encode_png(pixels)


def of_window(pixels: np.ndarray, *windows: tuple[float, float] | None) -> dict[str, np.ndarray]:
    """What the decode stage makes of rows of a PNG of 16 bits, each with a window."""
    column = np.empty(len(windows), object)
    column[:] = windows
    batch = {
        "image_id": np.array([str(row) for row in range(len(windows))], object),
        "image": np.array([encode_png(pixels), None] * len(windows), object)[::2],
        "media_type": np.array(["image/png"] * len(windows), object),
        "window": column,
    }
    return Decode(size=pixels.shape[0], max_pixels=10**6)(batch)


def test_the_decode_stage_takes_the_window_beside_a_png_of_16_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    out = of_window(pixels, (30000, 20000), None, (1000, 1))
    assert not out["error"].any() and "window" not in out
    wanted = np.round(np.clip((pixels - 20000.0) / 20000, 0, 1) * 255)
    assert np.abs(out["pixels"][0, ..., 0] - wanted).max() <= 1
    low, high = np.percentile(pixels, (0.5, 99.5))
    assert np.abs(out["pixels"][1, ..., 0] - np.clip((pixels - low) / (high - low), 0, 1) * 255).max() <= 0.51
    assert np.array_equal(out["pixels"][2, ..., 0] > 127, pixels >= 1000.0)


@pytest.mark.parametrize("column", [[None, None], [np.nan, np.nan], [[300, 100], [300, 100]]], ids=str)
def test_a_column_of_windows_may_have_no_value(column: list) -> None:
    pixels = np.random.default_rng(3).integers(0, 600, (64, 64)).astype(np.uint16)
    batch = {
        "image_id": np.array(["0", "1"], object),
        "image": np.array([encode_png(pixels), None] * 2, object)[::2],
        "media_type": np.array(["image/png"] * 2, object),
        "window": np.array(column),
    }
    out = Decode(size=64, max_pixels=10**6)(batch)
    assert not out["error"].any()
    low, high = (250, 350) if isinstance(column[0], list) else np.percentile(pixels, (0.5, 99.5))
    assert (
        np.abs(out["pixels"][1, ..., 0] - np.clip((pixels.astype(int) - low) / (high - low), 0, 1) * 255).max() <= 0.51
    )


def test_a_window_is_without_effect_on_8_bits() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)
    assert np.array_equal(of_window(pixels, (10, 5))["pixels"][0, ..., 0], pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_picture_upright_in_its_own_size(kind: str, orientation: int) -> None:
    samples = shallow(COLOUR, 8)[:40]
    reader = READERS[{"PNG": "image/png", "JPEG": "image/jpeg", "TIFF": "image/tiff"}[kind]]
    pixels = reader(turned(kind, samples, orientation), 10**6).upright()
    wanted = viewer.upright(samples, orientation)
    assert pixels.shape == wanted.shape and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - wanted).mean() <= 1.5


def test_a_grey_picture_has_one_channel() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (7, 9)).astype(np.uint8)
    for stored in (grey, np.dstack([grey] * 3)):
        assert np.array_equal(READERS["image/png"](encode_png(stored), 10**6).upright(), grey)


@pytest.mark.parametrize(("which", "step"), [("some", 1), ("every", 0)])
def test_a_choice_of_frames_that_is_none(which: str, step: int) -> None:
    with pytest.raises(ValueError, match="choice"):
        FrameChoice(which, step)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "window"), [(12, 0), (8, -1)])
def test_a_way_to_show_that_is_none(bits: int, window: int) -> None:
    with pytest.raises(ValueError, match="way"):
        Display(max_pixels=1, bits=bits, window=window)  # type: ignore[arg-type]
