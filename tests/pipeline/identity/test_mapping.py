import csv
import io
import stat
from pathlib import Path

import pytest

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity import mapping
from medfocus.pipeline.identity.mapping import Original, as_csv, original_of, read_mapping, write_mapping
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from tests.planted import Planter, header, new_patient

PSEUDONYMS = Pseudonyms(b"k" * 32)


def test_what_is_written_can_be_read_with_the_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_ROWS", 3)
    rows = [
        Original(f"image{n}", f"Miller/{n}.dcm", f"00{n}", "Mercy", "1.2", "1.3", f"1.4.{n}", "A,1") for n in range(7)
    ]
    file = tmp_path / "private" / "mapping"
    assert write_mapping(file, iter(rows[:4]), PSEUDONYMS) == 4
    assert write_mapping(file, rows[4:], PSEUDONYMS) == 3
    assert list(read_mapping(file, PSEUDONYMS)) == rows
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"Miller" not in file.read_bytes() and b"image" not in file.read_bytes()
    with pytest.raises(UsageError, match="not written with this key"):
        list(read_mapping(file, Pseudonyms(b"o" * 32)))


def test_a_file_that_is_missing_or_damaged_or_remote_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_mapping(tmp_path / "missing", PSEUDONYMS))
    (tmp_path / "damaged").write_text("name,id\n")
    with pytest.raises(UsageError, match="or is damaged"):
        list(read_mapping(tmp_path / "damaged", PSEUDONYMS))
    with pytest.raises(UsageError, match="not a local path"):
        write_mapping("s3://bucket/mapping", [], PSEUDONYMS)


def test_an_original_is_what_the_header_says() -> None:
    planter = Planter(0)
    patient = new_patient(planter)
    dataset = header(planter, patient)
    dataset.PatientID = f" {patient.number}"
    original = original_of("image", "a/b.dcm", dataset)
    assert original == Original(
        image_id="image",
        path="a/b.dcm",
        patient_id=patient.number,
        issuer=dataset.IssuerOfPatientID,
        study_uid=patient.study_uid,
        series_uid=patient.series_uid,
        instance_uid=dataset.SOPInstanceUID,
        accession=patient.accession,
    )
    table = list(csv.DictReader(io.StringIO(as_csv([original, original_of("other", "c,d.png")]))))
    assert table[0]["patient_id"] == patient.number and table[1]["path"] == "c,d.png"
