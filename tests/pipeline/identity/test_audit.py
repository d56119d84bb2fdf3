import json
import pickle
import stat
from collections import Counter
from pathlib import Path
from threading import Thread

import pydicom
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.audit import Audit
from tests.planted import plant


def item(**values: str) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_attributes_are_counted_by_what_becomes_of_them() -> None:
    header = item(PatientName="Miller^Anna", PatientID="1", Modality="CT", PatientComments="")
    header.RequestAttributesSequence = Sequence([item(PatientID="1", StudyDate="20240131"), item(PatientID="2")])
    header.OtherPatientIDsSequence = Sequence([])
    header.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "Miller")
    header.add_new(0x60003000, "OW", b"ab")
    header.add_new(0x00091FFF, "LO", "Miller")
    header.add_new(0x0008FFFE, "LO", "Miller")
    header.add_new(0x7FE00010, "OW", b"ab")
    header.preamble = b"Miller".ljust(128, b"\0")
    header.file_meta = item(SourceApplicationEntityTitle="MILLER")
    audit = Audit()
    audit.add(header)
    assert audit.removed == {
        "PatientName": 1,
        "PatientID": 2,
        "StudyDate": 1,
        "RequestAttributesSequence": 1,
        "private": 3,
        "OverlayData": 1,
        "unknown": 1,
        "preamble": 1,
        "SourceApplicationEntityTitle": 1,
    }
    assert audit.released == {"PatientID": 1, "Modality": 1} and audit.objects == 1


def test_raw_headers_are_counted_as_converted_ones(tmp_path: Path) -> None:
    """Elements as they are read, before pydicom converts them, and without what pydicom says of them."""
    needles = plant(tmp_path, 2)
    for path in tmp_path.rglob("*.dcm"):
        raw, converted = Audit(), Audit()
        raw.add(pydicom.dcmread(path))
        header = pydicom.dcmread(path)
        list(header.iterall())
        converted.add(header)
        assert raw == converted and raw.removed["private"] >= 5 and raw.removed.total() > 100
        text = raw.to_json().casefold()
        assert not [needle for needle in needles if needle.casefold() in text]
        assert Audit.from_json(raw.to_json()) == raw == pickle.loads(pickle.dumps(raw))


def test_threads_share_an_audit() -> None:
    audit, header = Audit(), item(PatientID="1", PatientName="Miller")
    threads = [Thread(target=lambda: [audit.add(header) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit == Audit(1600, Counter(PatientName=1600), Counter(PatientID=1600))


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "audit.json"
    audit = Audit(2, Counter(PatientName=2), Counter(PatientID=1))
    audit.write(file)
    file.chmod(0o644)
    audit.write(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = {"objects": 2, "removed": {"PatientName": 2}, "released": {"PatientID": 1}}
    assert json.loads(file.read_text()) == content
    with pytest.raises(UsageError, match="is not a local path"):
        audit.write("s3://bucket/audit.json")


def test_every_real_file_is_counted(dicom_files: Path) -> None:
    audit = Audit()
    for path in sorted(dicom_files.rglob("*")):
        if path.is_file():
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            except Exception:  # files that pydicom cannot read at all
                continue
            audit.add(header)
    assert audit.objects > 100 and audit.removed["PatientName"] > 50 and audit.removed["private"] > 100
