"""Files become rows whose pixels are those that a viewer shows, without what identifies a person."""

import hashlib
import io
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset
from pydicom.sequence import Sequence

from medfocus.pipeline.data import records
from medfocus.pipeline.identity.dates import day_number
from medfocus.pipeline.ingest.convert import Convert, ConvertSettings
from medfocus.pipeline.ingest.items import DICOM, NIFTI, UNKNOWN, Item, Naming
from medfocus.stages.batch import fail, start
from medfocus.stages.burned_in import BurnedInText
from medfocus.stages.burned_in_settings import Action, BurnedInSettings
from medfocus.stages.dicom import Display, FrameChoice
from medfocus.stages.formats import media_types
from medfocus.stages.likeness import perceptual_hash, pixels_digest
from tests.pipeline.ingest.files import BY_PATH, BY_PSEUDONYM, ct, ct_samples, decoded, picture, pixels, volume

DAY = day_number("20200102") or 0


def converter(
    *, bits: Any = 8, frames: Any = "all", step: int = 1, dates: str = "offset", action: Action = "quarantine",
    naming: Naming = BY_PATH,
) -> Convert:  # fmt: skip
    settings = ConvertSettings(Display(1_000_000, bits), FrameChoice(frames, step), dates)
    return Convert(settings, naming, BurnedInText(BurnedInSettings(action, "never")))


def item(kind: str, **fields: Any) -> Item:
    return Item("item", "file", "", kind, 1, "stamp", **fields)


def convert(
    content: bytes, kind: str = UNKNOWN, *, item_fields: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """What comes of one file: rows, and the error class and message."""
    columns = {"item": item(kind, **item_fields or {}), "content": content, "source_uri": "file:/in/file"}
    batch = {"image_id": np.array(["item"], object)}
    for name, value in columns.items():
        batch[name] = np.empty(1, object)
        batch[name][0] = value
    done = converter(**settings)(start(batch))
    return {name: done[name][0] for name in ("rows", "stage", "error", "message")}


def rows(*arguments: Any, **named: Any) -> list[dict[str, Any]]:
    done = convert(*arguments, **named)
    assert not done["error"], done["message"]
    records.shard_table({name: [row.get(name) for row in done["rows"]] for name in done["rows"][0]})
    found: list[dict[str, Any]] = done["rows"]
    return found


def shown(samples: np.ndarray) -> np.ndarray:
    """What the window 2048, 4096 shows of 12 bits (PS3.3 C.11.2.1.2.1): y = (x - 2047.5) / 4095 + 0.5."""
    return np.rint(np.clip((samples - 2047.5) / 4095 + 0.5, 0, 1) * 255).astype(np.uint8)


def test_a_png_keeps_its_pixels_and_loses_its_metadata() -> None:
    notes = PngInfo()
    notes.add_text("Patient", "Planted Name")
    content = picture(1, pnginfo=notes)
    (row,) = rows(content, item_fields={"label": "cyst", "patient": "p", "site": "s", "split": "train"})
    assert b"Planted" in content and b"Planted" not in row["image"]
    assert np.array_equal(decoded([row])["item"], pixels(1)) and row["media_type"] == media_types.PNG
    assert [row[name] for name in ("label", "patient_id", "site", "split")] == ["cyst", "p", "s", "train"]
    assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
    assert row["pixels_sha256"] == pixels_digest(pixels(1)) and row["likeness"] == perceptual_hash(pixels(1))
    assert row["source_uri"] == "file:/in/file"


def test_a_jpeg_keeps_its_orientation_and_its_compressed_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Planted Name"
    content = picture(1, "JPEG", exif=exif, comment=b"Planted Name")
    (row,) = rows(content)
    assert b"Planted" not in row["image"] and row["media_type"] == media_types.JPEG
    kept = Image.open(io.BytesIO(row["image"]))
    assert kept.getexif() == {0x0112: 6}
    before = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(np.asarray(kept), before)
    assert row["pixels_sha256"] == pixels_digest(np.rot90(before, -1))


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF"])
def test_other_pictures_are_stored_as_png(kind: str) -> None:
    (row,) = rows(picture(1, kind))
    assert row["media_type"] == media_types.PNG and np.array_equal(decoded([row])["item"], pixels(1))


def test_a_dicom_is_shown_through_its_window() -> None:
    samples = ct_samples(1, 12, 10)
    content = ct(samples, PatientSex="F", ViewPosition="PA", Manufacturer="SIEMENS")
    (row,) = rows(content, DICOM, item_fields={"first_day": DAY - 7, "patient": "p"})
    assert np.array_equal(decoded([row])["item"], shown(samples)) and row["media_type"] == media_types.PNG
    assert b"Planted" in content and b"Planted" not in row["image"]
    assert [row[name] for name in ("study_day", "age_band", "sex", "modality", "body_part", "view")] == [
        *(7, "45-49", "F", "CT", "CHEST", "PA")
    ]
    assert row["spacing"] == (0.5, 0.5) and row["window"] is None and row["frame"] is None
    assert row["study_id"].startswith("2.25.") and row["patient_id"] == "p"


@pytest.mark.parametrize(("dates", "day"), [("year", 2020), ("none", None)])
def test_dates_are_years_or_nothing(dates: str, day: int | None) -> None:
    assert rows(ct(ct_samples(1)), DICOM, dates=dates)[0]["study_day"] == day


@pytest.mark.parametrize(
    ("frames", "step", "chosen"), [("all", 1, [0, 1, 2, 3, 4]), ("middle", 1, [2]), ("every", 2, [0, 2, 4])]
)
def test_frames_are_rows(frames: str, step: int, chosen: list[int]) -> None:
    samples = ct_samples(2, 5, 8, 8)
    found = rows(ct(samples), DICOM, frames=frames, step=step)
    assert [row["frame"] for row in found] == chosen
    pictures = decoded(found)
    assert all(np.array_equal(pictures[f"item-{frame}"], shown(samples[frame])) for frame in chosen)


def test_16_bits_are_stored_with_the_window_that_shows_them() -> None:
    samples = ct_samples(3)
    content = ct(samples, WindowCenter=1000, WindowWidth=500)
    (row,), (plain,) = rows(content, DICOM, bits=16), rows(content, DICOM)
    stored = decoded([row])["item"].astype(np.int64)
    assert len(np.unique(stored)) == len(np.unique(samples))
    assert np.array_equal(np.argsort(stored, axis=None, kind="stable"), np.argsort(samples, axis=None, kind="stable"))
    centre, width = row["window"]
    windowed = np.clip((stored - centre) / width + 0.5, 0, 1) * 255
    assert np.abs(windowed - decoded([plain])["item"].astype(int)).max() <= 1
    assert row["pixels_sha256"] == plain["pixels_sha256"]


def test_a_nifti_volume_is_slices_from_the_feet() -> None:
    content = volume(1, 3)
    found = rows(content, NIFTI)
    assert [row["image_id"] for row in found] == ["item-0", "item-1", "item-2"]
    assert [row["position"][2] for row in found] == [0, 3, 6] and found[0]["spacing"] == (1, 1)
    samples = np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)[:, :, 1]
    front_up_left_right = samples.T[
        ::-1, ::-1
    ]  # the first axis rises to the right of the patient, who is seen from below
    stored = decoded(found)["item-1"].astype(int)
    assert np.corrcoef(stored.ravel(), front_up_left_right.ravel())[0, 1] > 0.99
    (middle,) = rows(content, NIFTI, frames="middle")
    assert middle["image_id"] == "item-1" and middle["pixels_sha256"] == found[1]["pixels_sha256"]


BURNED_IN = {"BurnedInAnnotation": "YES"}


def test_an_image_that_may_bear_a_name_is_quarantined() -> None:
    done = convert(ct(ct_samples(1), **BURNED_IN), DICOM)
    assert (done["error"], done["stage"], list(done["rows"])) == ("BurnedInText", "pack", [])
    assert "BurnedInAnnotation" in done["message"]
    assert rows(ct(ct_samples(1), **BURNED_IN), DICOM, action="keep")


def test_where_a_device_writes_is_black_also_in_16_bits() -> None:
    (row,) = rows(ultrasound(), DICOM, action="black_out", bits=16)
    stored = decoded([row])["item"]
    assert row["window"] is None and stored.dtype == np.uint8
    assert not stored[:4].any() and stored[4:].any()


def ultrasound() -> bytes:
    """An ultrasound image whose region begins below its fourth row."""
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 4
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 15
    region.RegionSpatialFormat, region.RegionDataType = 1, 1
    return ct(
        np.full((16, 16), 4000),
        Modality="US",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1",
        SequenceOfUltrasoundRegions=Sequence([region]),
    )


@pytest.mark.parametrize(
    ("content", "kind", "error"),
    [
        (b"", UNKNOWN, "EmptyImage"),
        (b"no image", UNKNOWN, "Undecodable"),
        (picture(1)[:60], UNKNOWN, "Truncated"),
        (b"%PDF-1.7 of something", UNKNOWN, "Unsupported"),
        (ct(ct_samples(1))[:-100], DICOM, "Truncated"),
        (ct(ct_samples(1))[:300], DICOM, "Undecodable"),
        (volume(1, 2)[:400], NIFTI, "Truncated"),
    ],
)
def test_what_cannot_be_shown_fails_with_the_reason(content: bytes, kind: str, error: str) -> None:
    done = convert(content, kind)
    assert done["error"] == error and done["message"] and not done["rows"]


def test_more_pixels_than_allowed_are_refused() -> None:
    done = convert(ct(np.zeros((1001, 1000))), DICOM)
    assert done["error"] == "TooManyPixels"


def test_a_row_that_has_failed_is_passed_over_and_an_error_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = start({"image_id": np.array(list("abc"), object)})
    for name, values in {
        "item": [item(UNKNOWN), item(UNKNOWN), item(DICOM)],
        "content": [("Vanished", "gone"), picture(1), ct(ct_samples(1))],
        "source_uri": ["a", "b", "c"],
    }.items():
        batch[name] = np.empty(3, object)
        for place, value in enumerate(values):
            batch[name][place] = value
    fail(batch, 0, "pack", "Vanished", "gone")

    def broken(*_: object) -> None:
        raise IndexError("Planted^Name")

    monkeypatch.setattr("medfocus.stages.dicom.read_frames", broken)
    done = converter()(batch)
    assert list(done["error"]) == ["Vanished", "", "Undecodable"] and [len(found) for found in done["rows"]] == [
        0,
        1,
        0,
    ]
    assert "IndexError" in done["message"][2] and "Planted" not in done["message"][2]


def test_names_follow_the_revision_and_pseudonyms() -> None:
    (row,) = rows(picture(1), naming=BY_PSEUDONYM, item_fields={"revision": 2})
    assert row["image_id"] == "item~2" and row["source_uri"] == "medfocus:item"
    assert [row["image_id"] for row in rows(ct(ct_samples(1, 2, 8, 8)), DICOM, item_fields={"revision": 1})] == [
        "item~1-0",
        "item~1-1",
    ]
