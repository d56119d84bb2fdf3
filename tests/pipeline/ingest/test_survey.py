"""What the survey makes of files, by their first bytes and their headers."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from PIL import Image

from medfocus.pipeline.data.storage import AccessError, ServiceError
from medfocus.pipeline.identity.dates import day_number
from medfocus.pipeline.identity.pseudonyms import pseudonym_of
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.items import DICOM, NIFTI
from medfocus.pipeline.ingest.survey import Surveyor, audit_of, originals_of
from medfocus.stages.formats import media_types
from tests.pipeline.ingest.files import (
    BY_PSEUDONYM,
    PSEUDONYMS,
    ct,
    ct_samples,
    errors,
    find,
    images,
    picture,
    place,
    tar_gz,
    volume,
    write,
    write_each,
    zipped,
)


def surveyed(top: Path, *names: str, originals: bool = False) -> list[dict[str, Any]]:
    """The rows of some files, from the surveyor alone."""
    files = [
        {"number": number, "name": name.encode(), "size": (top / name).stat().st_size}
        for number, name in enumerate(names)
    ]
    (result,) = Surveyor(place(top), PSEUDONYMS, originals)(pa.Table.from_pylist(files)).to_pylist()
    assert result["numbers"] == list(range(len(names)))
    rows: list[dict[str, Any]] = result["rows"]
    return rows


def test_images_are_found_by_their_bytes(top: Path, catalog: Catalog) -> None:
    for name in ("a.png", "b.PNG", "c", "d.dat", "e.Smith", "x/f.jpe", "x/g.jfif", "x/h.dib", "x/i.mpo", "x/j.tif"):
        write(top / name)
    write(top / "k.jpg", b"no image, but its name says so")
    large = io.BytesIO()
    Image.fromarray(np.zeros((300, 300), np.uint8)).save(large, "TIFF")  # its header is behind its pixels
    write(top / "l.scan", large.getvalue())
    (
        write(top / "m", picture(kind="JPEG")),
        write(top / "n", picture(kind="BMP")),
        write(top / "o", picture(kind="WEBP")),
    )
    for name in ("p.txt", "q.csv", "r.Jones", "s", "t.txt"):
        write(top / name, b"BM is how this text begins\n")
    write(top / "u.txt", b"")
    find(catalog, place(top))
    assert images(catalog) == [
        *("a.png", "b.PNG", "c", "d.dat", "e.Smith", "k.jpg", "l.scan", "m", "n", "o"),
        *("x/f.jpe", "x/g.jfif", "x/h.dib", "x/i.mpo", "x/j.tif"),
    ]
    assert not errors(catalog)
    assert catalog.left_out() == Counter({".txt": 3, ".csv": 1, "another suffix": 1, "no suffix": 1})


def test_an_empty_file_is_refused_where_its_name_says_image(top: Path, catalog: Catalog) -> None:
    write(top / "ok.png"), write(top / "empty.png", b""), write(top / "empty.dcm", b""), write(top / "empty", b"")
    find(catalog, place(top))
    assert images(catalog) == ["ok.png"]
    assert errors(catalog) == {"empty.png": "EmptyImage", "empty.dcm": "EmptyImage"}


def test_a_file_that_cannot_be_read_does_not_touch_the_others(
    top: Path, catalog: Catalog, plain_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    write(top / "ok.png")
    write(top / "closed.png").chmod(0)
    find(catalog, place(top))
    assert images(catalog) == ["ok.png"] and errors(catalog) == {"closed.png": "Unreadable"}
    assert all(str(top) not in message for _, _, _, message in catalog.refusals(BY_PSEUDONYM))


def test_kinds_are_told(top: Path) -> None:
    write_each(
        top,
        {
            "0": picture(),
            "1": picture(kind="TIFF"),
            "2": ct(ct_samples(0)),
            "3": ct(ct_samples(0))[132:],  # without preamble and prefix
            "4": volume(0, 2),
            "5": ct(ct_samples(0), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"),
            "6": zipped({"[Content_Types].xml": b"<Types/>", "word/media/1.png": picture()}),
        },
    )
    rows = surveyed(top, *"0123456")
    kinds = [media_types.PNG, media_types.TIFF, DICOM, DICOM, NIFTI]
    assert [(row["kind"], row["outcome"]) for row in rows[:5]] == [(kind, None) for kind in kinds]
    assert [row["outcome"] for row in rows[5:]] == ["not an image"] * 2
    assert rows[5]["message"].startswith("DICOM ") and len(rows) == 7


def test_a_damaged_header_is_refused(top: Path) -> None:
    write(top / "a.dcm", ct(ct_samples(0))[:140]), write(top / "b.dcm", bytes(128) + b"DICM" + b"\xff" * 40)
    rows = surveyed(top, "a.dcm", "b.dcm")
    assert [(row["kind"], row["outcome"]) for row in rows] == [(DICOM, "Undecodable")] * 2
    assert all(row["message"].startswith("the DICOM file has no attribute") for row in rows)


def test_the_ids_of_a_header_are_pseudonyms(top: Path) -> None:
    content = ct(
        ct_samples(0), "P1", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", SOPInstanceUID="1.2.5",
        AccessionNumber="A7", IssuerOfPatientID="North", StudyDate="20200102",
    )  # fmt: skip
    write(top / "a", content), write(top / "long", ct(ct_samples(0), PatientComments="x" * 65_000))
    row, long = surveyed(top, "a", "long")

    def pseudonym(kind: str, text: str) -> str:
        return pseudonym_of(PSEUDONYMS, kind, text)

    assert [row[name] for name in ("study", "series", "instance", "accession", "patient")] == [
        pseudonym("study", "1.2.3"),
        pseudonym("series", "1.2.4"),
        pseudonym("instance", "1.2.5"),
        pseudonym("accession", "A7"),
        pseudonym("patient", "P1"),
    ]
    assert row["study_date"] == day_number("20200102") and row["original"] is None
    assert long["patient"] == row["patient"]
    (kept,) = surveyed(top, "a", originals=True)
    assert json.loads(kept["original"])["patient_id"] == "P1"


def test_members_of_archives_are_items(top: Path, catalog: Catalog) -> None:
    members = {"x/1.png": picture(), "2": ct(ct_samples(0)), "notes.txt": b"no image", "3.png": b"", "../4.png": b"4"}
    write_each(top, {"a.zip": zipped(members), "b.tar.gz": tar_gz(members), "v.nii.gz": volume(0, 2)})
    find(catalog, place(top))
    assert images(catalog) == [f"{name}/{member}" for name in ("a.zip", "b.tar.gz") for member in ("2", "x/1.png")] + [
        "v.nii.gz"
    ]
    assert Counter(errors(catalog).values()) == {"EmptyImage": 2, "UnsafePath": 2}
    assert catalog.left_out() == {".txt": 2}


def test_a_broken_archive_is_refused_and_its_whole_members_are_found(top: Path, catalog: Catalog) -> None:
    write_each(top, {"a.tar.gz": tar_gz({f"{seed}.png": picture(seed) for seed in range(40)})[:-3000]})
    find(catalog, place(top))
    assert 0 < len(images(catalog)) < 40 and len(errors(catalog)) >= 1


def test_headers_are_counted_and_originals_kept(top: Path, catalog: Catalog) -> None:
    write_each(top, {"a": ct(ct_samples(0)), "b.zip": zipped({"c": ct(ct_samples(1), "P2")}), "d.png": picture()})
    find(catalog, place(top), BY_PSEUDONYM, originals=True)
    audit = audit_of(catalog)
    assert audit.objects == 2 and audit.removed["PatientName"] == 2
    originals = {original.path: original for original in originals_of(catalog)}
    assert {path: original.patient_id for path, original in originals.items()} == {
        "a": "P1",
        "b.zip/c": "P2",
        "d.png": "",
    }
    assert originals["a"].image_id == BY_PSEUDONYM.item("a") != "a"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"), AccessError),
        (EndpointConnectionError(endpoint_url="http://storage"), ServiceError),
    ],
)
def test_storage_that_serves_nothing_ends_the_survey(
    top: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type
) -> None:
    write(top / "a.png")
    raised: Iterator[Exception] = iter([error] * 4)

    def fail(*_: object) -> None:
        raise next(raised)

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(kind):
        surveyed(top, "a.png")
