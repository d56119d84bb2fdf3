import io
import logging
import re
import subprocess
import sys
import warnings
from dataclasses import astuple, fields
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from medfocus.pipeline.identity.allowed import ALLOWED
from medfocus.pipeline.identity.describe import Identity, describe
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, patient_pseudonym
from tests.planted import plant

PSEUDONYMS = Pseudonyms(b"k" * 32)
DOCUMENT = Path(__file__).parents[3] / "docs/de-identification.md"
PSEUDONYM, UID = re.compile("[bcdfghjklmnpqrst]{32}"), re.compile(r"2\.25\.\d{1,39}")


def described(**values: object) -> Identity:
    header = Dataset()
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return describe(header, PSEUDONYMS)


def test_an_object_is_described_by_pseudonyms_and_terms() -> None:
    identity = described(
        PatientID=" 007 ", IssuerOfPatientID="Mercy", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4",
        SOPInstanceUID="1.2.5", AccessionNumber="A1", StudyDate="20240131", Modality="MG", ViewPosition="MLO",
        ImageLaterality="L", BodyPartExamined="Breast", PatientBirthDate="19840201", PatientSex="F",
        Manufacturer="HOLOGIC, Inc.", ManufacturerModelName="Selenia Dimensions", InstitutionName="St  John",
        StationName="room 3",
    )  # fmt: skip
    assert identity == Identity(
        patient_id=PSEUDONYMS.of("patient", "007"),
        study_id=PSEUDONYMS.uid("1.2.3"),
        series_id=PSEUDONYMS.uid("1.2.4"),
        instance_id=PSEUDONYMS.uid("1.2.5"),
        accession=PSEUDONYMS.of("accession", "A1"),
        study_date=45320,
        modality="MG",
        view="MLO",
        laterality="L",
        body_part="BREAST",
        age_band="35-39",
        sex="F",
        manufacturer="Hologic",
        device_model="Selenia Dimensions",
        site=PSEUDONYMS.of("site", "st john"),
    )


def test_an_empty_header_has_no_value() -> None:
    assert set(astuple(described())) == {None}
    empty = dict.fromkeys((allowed.keyword for allowed in ALLOWED), "")
    assert set(astuple(described(**{key: value for key, value in empty.items() if "Sequence" not in key}))) == {None}


@pytest.mark.parametrize(
    ("scheme", "value", "view"),
    [("SCT", "399162004", "cranio-caudal"), ("SRT", "R-10242", "cranio-caudal"), ("99MILLER", "399162004", None)],
)
def test_the_view_is_the_meaning_of_its_code_in_the_standard(scheme: str, value: str, view: str | None) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "Miller^Anna"
    assert described(ViewCodeSequence=Sequence([item])).view == view


def test_the_side_of_an_enhanced_object_is_in_its_functional_groups() -> None:
    anatomy, groups = Dataset(), Dataset()
    anatomy.FrameLaterality = "R"
    groups.FrameAnatomySequence = Sequence([anatomy])
    assert described(SharedFunctionalGroupsSequence=Sequence([groups])).laterality == "R"


@pytest.mark.parametrize(
    ("maker", "model", "expected"),
    [
        ("GE MEDICAL SYSTEMS", "DISCOVERY MR750", ("GE", "DISCOVERY MR750")),
        ("G.E. Medical Systems", "LightSpeed Plus", ("GE", "LightSpeed Plus")),
        ("SIEMENS", "SOMATOM Definition AS+", ("Siemens", "SOMATOM Definition AS+")),
        ("FUJI PHOTO FILM CO. LTD.", "FDR 3.0T", ("Fujifilm", "FDR 3.0T")),
        ("Philips Miller^Anna", "Ingenia Anna", ("Philips", None)),
        ("Miller^Anna", "Miller 12345678", (None, None)),
        ("Gerber", "P001", (None, None)),
        ("GEorge", "Discovery 20240131", (None, None)),
    ],
)
def test_devices_leave_by_the_words_of_closed_lists(maker: str, model: str, expected: tuple[str | None, ...]) -> None:
    identity = described(Manufacturer=maker, ManufacturerModelName=model)
    for value, wanted in zip((identity.manufacturer, identity.device_model), expected, strict=True):
        assert value == wanted if wanted else PSEUDONYM.fullmatch(str(value))


def test_several_values_and_other_representations_raise_nothing() -> None:
    header = Dataset()
    header.PatientID, header.Modality, header.PatientSex = "A\\B", ["CT", "MR"], ["F", "F"]
    header.add_new(0x00200011, "IS", "7")
    header[0x00100020] = pydicom.DataElement(0x00100020, "US", [7, 8])
    header[0x00080020] = pydicom.DataElement(0x00080020, "OB", b"20240131\0")
    header[0x00181000] = pydicom.DataElement(0x00181000, "SQ", [])
    header[0x00080070] = pydicom.DataElement(0x00080070, "SQ", [Dataset()])
    identity = describe(header, PSEUDONYMS)
    assert identity.patient_id == patient_pseudonym(PSEUDONYMS, "7\\8")
    assert (identity.study_date, identity.modality, identity.sex, identity.manufacturer) == (45320, None, None, None)


@settings(deadline=None)
@given(st.data())
def test_no_bytes_raise_or_leak(data: st.DataObject) -> None:
    """Raw elements as a damaged file has them: any bytes under any representation, read with any character set."""
    header = Dataset()
    charset = data.draw(
        st.sampled_from(["", "ISO_IR 192", "ISO 2022 IR 87", "nonsense", "ISO_IR 100\\ISO 2022 IR 149"])
    )
    header.SpecificCharacterSet = charset.split("\\")
    secret = data.draw(st.binary(min_size=5, max_size=20).filter(lambda value: len(value.strip(bytes(range(33)))) > 4))
    for allowed in ALLOWED:
        tag = Tag(tag_for_keyword(allowed.keyword) or 0)
        own = dictionary_VR(tag)
        representation = data.draw(st.sampled_from([own, own, "UN", "SQ", "US", "DS", "AT", "FD", None]))
        header._dict[tag] = RawDataElement(tag, representation, len(secret), secret, 0, False, True)
    identity = describe(header, PSEUDONYMS)
    for value in astuple(identity):
        assert secret.decode("latin-1").strip() not in str(value)


def test_no_planted_needle_is_in_a_description(tmp_path: Path) -> None:
    needles = plant(tmp_path, 3)
    described_files = 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix in ("", ".dcm"):
            identity = describe(pydicom.dcmread(path, force=True), PSEUDONYMS)
            text = repr(identity).casefold()
            assert not [needle for needle in needles if needle.casefold() in text]
            assert identity.modality == "CT" and identity.patient_id
            described_files += 1
    assert described_files == 6


def test_every_real_file_is_described_without_a_message(dicom_files: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    read = 0
    for path in sorted(dicom_files.rglob("*")):
        if not path.is_file():
            continue
        try:
            header = pydicom.dcmread(io.BytesIO(path.read_bytes()), stop_before_pixels=True, force=True)
        except Exception:  # files that pydicom cannot read at all
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="medfocus")
            identity = describe(header, PSEUDONYMS)
        for column in fields(Identity)[:5]:
            value = getattr(identity, column.name)
            assert value is None or PSEUDONYM.fullmatch(value) or UID.fullmatch(value)
        read += 1
    assert read > 100 and not caplog.records


def test_no_message_of_pydicom_reaches_a_log() -> None:
    """In a process of its own with every log on, values that pydicom quotes in its warnings are not printed."""
    code = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
logging.captureWarnings(True)
from medfocus.pipeline.identity.describe import describe
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
header = Dataset()
header.SpecificCharacterSet = "Miller"
for tag, representation in ((0x00100020, "UI"), (0x00080020, "DA"), (0x00080060, "CS"), (0x0020000D, "DS")):
    header._dict[Tag(tag)] = RawDataElement(Tag(tag), representation, 6, b"Miller\\xff", 0, False, True)
print(describe(header, Pseudonyms(b"k" * 32)).patient_id)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert PSEUDONYM.fullmatch(run.stdout.splitlines()[-1]) and "Miller" not in run.stdout + run.stderr


def test_the_document_lists_what_leaves() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\w+)", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [(allowed.keyword, allowed.column, allowed.form) for allowed in ALLOWED]


def test_what_leaves_as_it_is_may_do_so_by_the_standard() -> None:
    """Table E.1-1 removes, replaces or empties each attribute whose value leaves in another form; no other leaves."""
    table = pytest.importorskip(
        "dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c",
        reason="the test compares with Table E.1-1 as the package dicom-anonymizer has it; install it",
    )
    # Tags of repeating groups have masks beside them.
    actions = {
        name: {tag[0] << 16 | tag[1] for tag in getattr(table, name) if len(tag) == 2}
        for name in dir(table)
        if name.endswith("_TAGS")
    }
    for allowed in ALLOWED:
        tag = tag_for_keyword(allowed.keyword)
        if allowed.form in ("term", "number", "device") and allowed.keyword != "PatientSex":
            assert tag not in actions["ALL_TAGS"], allowed.keyword
        else:  # in another form, or kept by the option to retain patient characteristics
            assert tag in actions["ALL_TAGS"], allowed.keyword
    document = DOCUMENT.read_text()
    for allowed in ALLOWED:
        action = re.search(rf"^\| `{allowed.keyword}` \|.*\| ([A-Z/-]+) \|$", document, re.MULTILINE)
        names = {name for name, tags in actions.items() if tag_for_keyword(allowed.keyword) in tags} - {"ALL_TAGS"}
        assert action and names == ({f"{action[1].replace('/', '_')}_TAGS"} if action[1] != "-" else set())
