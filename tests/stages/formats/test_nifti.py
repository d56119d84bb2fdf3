"""Slices of NIfTI volumes, against nibabel's own reading of them and a computation in the patient's coordinates."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocus.stages.formats import nifti
from medfocus.stages.formats.frames import Display, Frame, FrameChoice
from medfocus.stages.formats.picture import ImageError

WHOLE = Display(max_pixels=1_000_000)
DEEP = Display(max_pixels=1_000_000, bits=16)


def volume(samples: np.ndarray, affine: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> bytes:
    return kind(samples, np.eye(4) if affine is None else affine).to_bytes()


def slices(content: bytes, display: Display = WHOLE, choice: FrameChoice | None = None) -> list[Frame]:
    return list(nifti.read_slices(content, choice or FrameChoice(), display))


def windowed(values: np.ndarray, all_values: np.ndarray) -> np.ndarray:
    finite = all_values[np.isfinite(all_values)]
    low, high = np.percentile(finite, (0.5, 99.5))
    scaled = np.clip((values - low) / (high - low), 0, 1) if high > low else (values > low).astype(float)
    return np.nan_to_num(scaled) * 255


def affines() -> Iterator[np.ndarray]:
    """All turns and mirrors of the axes, with sides of 1 mm and an offset."""
    for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(axes)].T * (1 - 2 * np.array(signs))
            affine[:3, 3] = 10, -20, 30
            yield affine


@pytest.mark.parametrize("affine", affines(), ids=lambda affine: "".join(nibabel.aff2axcodes(affine)))
def test_each_orientation_is_shown_as_radiologists_see_it(affine: np.ndarray) -> None:
    """Each pixel of each picture, found by where it lies in the patient."""
    samples = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype("i2")
    back = np.linalg.inv(affine)
    found = slices(volume(samples, affine))
    for frame in found:
        height, width = frame.pixels.shape
        left, behind, head = frame.position
        wanted = np.empty((height, width))
        for row in range(height):
            for column in range(width):
                # One column on is 1 mm to the patient's left, one row down 1 mm to the back.
                place = back @ (-(left + column), -(behind + row), head, 1)
                wanted[row, column] = samples[tuple(np.round(place[:3]).astype(int))]
        assert np.abs(frame.pixels - windowed(wanted, samples)).max() <= 0.5 + 1e-6
    heads = [frame.position[2] for frame in found]
    assert heads == sorted(heads) and len(found) == {2: 6, 1: 5, 0: 4}[int(np.abs(affine[2, :3]).argmax())]


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("slope", [1, 2.5, -0.5])
@pytest.mark.parametrize("image", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_samples_are_scaled_and_windowed(kind: str, slope: float, image: type) -> None:
    samples = (np.random.default_rng(1).gamma(2, 20, (8, 9, 3)) - 5).clip(0, 120).astype(kind)
    stored = image(samples, np.eye(4))
    stored.header.set_data_dtype(samples.dtype)
    header = stored.header.copy()
    header.set_slope_inter(slope, 7)
    start = int(header["vox_offset"]) or (352 if image is nibabel.Nifti1Image else 544)
    header["vox_offset"] = start
    content = header.binaryblock.ljust(start, b"\0") + samples.tobytes(order="F")
    scaled = (
        nibabel.Nifti1Image.from_bytes(content).get_fdata() if image is nibabel.Nifti1Image else samples * slope + 7
    )
    for frame, deep in zip(slices(content), slices(content, DEEP), strict=True):
        seen = scaled[::-1, ::-1, frame.number].T
        assert np.abs(frame.pixels - windowed(seen, scaled)).max() <= 0.5 + 1e-3
        low, high = deep.window[0] - deep.window[1] / 2, deep.window[0] + deep.window[1] / 2
        again = np.clip((deep.pixels - low) / (high - low), 0, 1) * 255
        assert np.abs(np.round(again) - frame.pixels).max() <= (1 if kind.startswith("f") else 0)
    values = np.unique(np.stack([frame.pixels for frame in slices(content, DEEP)]))
    assert kind.startswith("f") or len(values) == len(np.unique(samples))


def test_values_that_are_not_finite_are_black_and_not_in_the_window() -> None:
    samples = np.random.default_rng(2).normal(0, 1, (8, 8, 2)).astype("f4")
    samples[0, 0, 0], samples[1, 1, 0] = np.nan, np.inf
    (frame, _) = slices(volume(samples))
    seen = samples[::-1, ::-1, 0].T
    wanted = windowed(np.where(np.isinf(seen), 1e9, seen), samples)
    assert np.abs(frame.pixels - wanted).max() <= 0.5 + 1e-3
    with pytest.raises(ImageError) as caught:
        slices(volume(np.full((4, 4, 1), np.nan, "f4")))
    assert caught.value.kind == "NotFinite"


def test_each_volume_of_a_file_is_read_with_its_own_window() -> None:
    samples = np.random.default_rng(3).integers(0, 100, (6, 5, 4, 3)).astype("i2") * np.array([1, 10, 100], "i2")
    found = slices(volume(samples))
    assert [frame.number for frame in found] == list(range(12))
    for frame in found:
        part, place = divmod(frame.number, 4)
        one = samples[..., part]
        assert np.abs(frame.pixels - windowed(one[::-1, ::-1, place].T, one)).max() <= 0.5 + 1e-6
    middle = slices(volume(samples), choice=FrameChoice("middle"))
    assert [frame.number for frame in middle] == [2, 6, 10]


def test_colours() -> None:
    colours = np.random.default_rng(4).integers(0, 256, (4, 5, 2, 3)).astype("u1")
    stored = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    found = slices(volume(stored), DEEP)
    assert np.array_equal(found[1].pixels, np.swapaxes(colours[::-1, ::-1, 1], 0, 1))
    assert found[0].window is None


def test_spacing_and_pixels_that_are_not_square() -> None:
    samples = np.random.default_rng(5).integers(0, 100, (10, 20, 2)).astype("i2")
    (frame, other) = slices(volume(samples, np.diag([1, 2, 3, 1])))
    assert frame.pixels.shape == (40, 10)
    assert frame.spacing == (1, 1)
    assert np.subtract(other.position, frame.position).tolist() == [0, 0, 3]


def test_compressed_files_and_bombs() -> None:
    samples = np.random.default_rng(6).integers(0, 100, (10, 20, 2)).astype("i2")
    content = volume(samples)
    packed = gzip.compress(content)
    assert nifti.is_nifti(content[:348]) and nifti.is_nifti(packed[:512])
    for one, other in zip(slices(content), slices(packed), strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    after = gzip.compress(content + bytes(100 << 20))  # what follows the volume is not inflated
    assert len(slices(after)) == 2
    large = volume(np.zeros((100, 100, 30), "u1"))
    with pytest.raises(ImageError) as caught:
        slices(gzip.compress(large), Display(max_pixels=20_000))
    assert caught.value.kind == "TooManyPixels"


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_off_is_truncated(packed: bool) -> None:
    content = volume(np.random.default_rng(7).integers(0, 100, (10, 20, 2)).astype("i2"))
    content = gzip.compress(content) if packed else content
    for length in (len(content) - 20, len(content) - 300, 360 if not packed else len(content) // 2):
        with pytest.raises(ImageError) as caught:
            slices(content[:length])
        assert caught.value.kind == "Truncated"


@pytest.mark.parametrize("name", ["complex", "no sides", "flat affine", "one dimension", "six dimensions"])
def test_the_reason_of_what_is_refused(name: str) -> None:
    stored = nibabel.Nifti1Image(np.zeros((4, 4, 2), "i2"), np.eye(4))
    content = {
        "complex": lambda: volume(np.zeros((4, 4, 2), "c8")),
        "no sides": lambda: stored.to_bytes()[:42] + b"\0\0" + stored.to_bytes()[44:],
        "flat affine": lambda: stored.to_bytes()[:312] + bytes(16) + stored.to_bytes()[328:],
        "one dimension": lambda: stored.to_bytes()[:40] + b"\1\0" + stored.to_bytes()[42:],
        "six dimensions": lambda: volume(np.zeros((1, 1, 1, 1, 4, 4), "f4")),
    }[name]()
    with pytest.raises(ImageError) as caught:
        slices(content)
    assert caught.value.kind in ("Unsupported", "Undecodable") and len(str(caught.value)) > 20


@pytest.mark.parametrize(
    "content", [b"", bytes(600), gzip.compress(bytes(600)), b"\x1f\x8b broken" * 40, b"text" * 200]
)
def test_what_is_no_nifti(content: bytes) -> None:
    assert not nifti.is_nifti(content[:512])
    with pytest.raises(ImageError):
        slices(content)


@settings(max_examples=150, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6))
def test_damaged_bytes_give_pictures_or_an_error(places: list[tuple[int, bytes]]) -> None:
    content = bytearray(volume(np.arange(200).reshape(10, 10, 2).astype("i2")))
    for start, value in places:
        content[start : start + len(value)] = value
    try:
        slices(bytes(content))
    except ImageError as error:
        assert len(str(error)) > 10


def test_real_files_are_shown_as_nibabel_reads_them(pathological: Path) -> None:
    shown = []
    for path in sorted((pathological / "nifti").iterdir()):
        content = path.read_bytes()
        try:
            found = slices(content, Display(max_pixels=100_000_000))
        except ImageError:
            continue
        shown.append(path.name)
        plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(plain))
        data = np.asarray(image.dataobj)
        if data.dtype.kind == "V":
            assert all(frame.pixels.shape[2] == 3 for frame in found)
            continue
        data = image.get_fdata().reshape(*data.shape[:3], -1)
        assert len(found) == data.shape[2] * data.shape[3]
        for frame in found:
            part, place = divmod(frame.number, data.shape[2])
            seen = windowed(data[::-1, ::-1, place, part].T, data[..., part])
            if seen.shape == frame.pixels.shape:
                assert np.abs(frame.pixels - seen).max() <= 0.5 + 0.01
    assert len(shown) >= 5
