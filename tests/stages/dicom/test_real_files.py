"""Every file of a folder of DICOM objects of many kinds, against what other decoders and the formulas make of it."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medfocus.stages import dicom
from medfocus.stages.decode import Decode
from medfocus.stages.formats.encode import encode_png
from medfocus.stages.formats.picture import ImageError
from tests.stages.dicom.reference import header_of, resampled, shown, stored_of, with_groups

_LIMIT = 100_000_000
# Why a file may be refused: parts of the message, which say what is wrong.
_REASONS = (
    "holds no pixel data",
    "frames), the header",
    "bytes of pixel data",
    "the header promises",
    "is no JPEG",
    "a compressed frame has",
    "damaged",
    "truncated",
)
# Its pixels are YCbCr, as the smaller chroma shows, though the header says RGB, as which GDCM returns them.
_MISLABELLED = "SC_rgb_jpeg_lossy_gdcm"


def _files(folder: Path) -> list[Path]:
    files = sorted(path for part in ("files", "series") for path in (folder / part).rglob("*") if path.is_file())
    assert files
    return files


def _images(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The files that hold an image."""
    for path in _files(folder):
        content = path.read_bytes()
        if dicom.is_dicom(content[:512]) and not dicom.not_an_image(dicom.read_header(io.BytesIO(content))):
            yield path, content


def test_each_file_is_shown_as_by_other_decoders_or_refused_with_its_reason(dicom_files: Path) -> None:
    wrong, equal = [], 0
    for path, content in _images(dicom_files):
        try:
            frames = [frame.pixels for frame in dicom.read_frames(content, dicom.FrameChoice(), dicom.Display(_LIMIT))]
        except ImageError as error:
            if not any(reason in str(error) for reason in _REASONS):
                wrong.append(f"{path.name}: {error.kind}: {error}")
            continue
        header, stored = header_of(path), stored_of(path)
        if len(frames) != len(stored.frames):
            wrong.append(f"{path.name}: {len(frames)} frames, not {len(stored.frames)}")
        for number, (samples, found) in enumerate(zip(stored.frames, frames, strict=False)):
            picture = resampled(shown(samples, stored.photometric, with_groups(header, number)), found.shape)
            off = int(np.abs(picture.astype(int) - found).max())
            equal += off <= 1
            if off > 1 and _MISLABELLED not in path.name:
                wrong.append(f"{path.name}, frame {number}: differs by {off} grey levels from {stored.decoder}")
    assert not wrong
    assert equal > 100


def test_a_file_of_16_bits_and_its_window_show_the_same_picture(dicom_files: Path) -> None:
    wrong = []
    for path, content in _images(dicom_files):
        if len(content) > 1_000_000:
            continue
        choice = dicom.FrameChoice("middle")
        try:
            (deep,) = dicom.read_frames(content, choice, dicom.Display(_LIMIT, bits=16))
            (shallow,) = dicom.read_frames(content, choice, dicom.Display(_LIMIT))
        except ImageError:
            continue
        if deep.window is None:
            assert np.array_equal(deep.pixels, shallow.pixels)
            continue
        if deep.pixels.shape != shallow.pixels.shape or deep.pixels.shape[0] != deep.pixels.shape[1]:
            continue  # the decode stage resizes to a square, which is exact only for a square
        batch = {
            "image_id": np.array(["x"], object),
            "image": np.array([encode_png(deep.pixels), None], object)[:1],
            "media_type": np.array(["image/png"], object),
            "window": np.array([deep.window]),
        }
        out = Decode(size=deep.pixels.shape[0], max_pixels=_LIMIT)(batch)
        off = np.abs(out["pixels"][0, ..., 0].astype(int) - shallow.pixels)
        if off.max() > 1 or (off > 0).mean() > 0.01:
            wrong.append(f"{path.name}: {off.max()} in {(off > 0).mean():.4f} of the pixels")
    assert not wrong


def test_objects_without_an_image_and_other_files_are_told_apart(dicom_files: Path) -> None:
    kinds: dict[str, list[str]] = {}
    for path in _files(dicom_files):
        content = path.read_bytes()
        is_text = not dicom.is_dicom(content[:512])
        kind = "no DICOM" if is_text else dicom.not_an_image(dicom.read_header(io.BytesIO(content)))
        if kind is not None:
            kinds.setdefault(kind, []).append(path.name)
    assert all(name.startswith("deid__") or name == "pydicom__no_meta.dcm" for name in kinds["no DICOM"])
    for kind, part in (
        ("directory (DICOMDIR)", "DICOMDIR"),
        ("structured report", "sr_document"),
        ("segmentation", "seg_image"),
        ("waveform", "wave"),
        ("radiotherapy object", "rtplan"),
        ("presentation state", "prLUTs"),
        ("colour palette", "hotmetal"),
    ):
        assert any(part in name for name in kinds[kind]), kind


def test_a_file_that_is_cut_off_is_never_shown_in_part(dicom_files: Path) -> None:
    """Each file of an image, cut at places of all kinds: an error with a reason, or the same picture as before."""
    generator = np.random.default_rng(0)
    wrong = []
    for path, content in _images(dicom_files):
        if len(content) > 300_000:
            continue
        choice, display = dicom.FrameChoice("middle"), dicom.Display(_LIMIT)
        try:
            (whole,) = dicom.read_frames(content, choice, display)
        except ImageError:
            continue
        for share in (*generator.uniform(0, 1, 3), 1 - 4 / len(content), 1 - 60 / len(content)):
            try:
                frames = list(dicom.read_frames(content[: int(share * len(content))], choice, display))
            except ImageError as error:
                if error.kind not in ("Truncated", "Undecodable", "Unsupported"):
                    wrong.append(f"{path.name} at {share:.3f}: {error.kind}: {error}")
                continue
            if not np.array_equal(frames[0].pixels, whole.pixels):
                wrong.append(f"{path.name} at {share:.3f}: shown in part")
    assert not wrong
