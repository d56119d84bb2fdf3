"""A synthetic archive with planted identity: every name, id and date that is in it is known."""

import io
import tarfile
import zipfile
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian


def _words(text: str) -> list[str]:
    return text.split()


# Attributes that get a name, an id, a date or a sentence of their own, by their value representation.
NAMES = _words(
    "ReferringPhysicianName PerformingPhysicianName OperatorsName NameOfPhysiciansReadingStudy"
    " RequestingPhysician PatientBirthName PatientMotherBirthName OtherPatientNames PhysiciansOfRecord"
    " ResponsiblePerson ConsultingPhysicianName ContentCreatorName"
)
TEXTS = _words(
    "OtherPatientIDs IssuerOfPatientID StudyID InstitutionalDepartmentName StationName DeviceSerialNumber"
    " PatientAddress PatientTelephoneNumbers MilitaryRank MedicalRecordLocator PatientReligiousPreference"
    " Occupation EthnicGroup StudyDescription SeriesDescription ProtocolName RequestedProcedureDescription"
    " RequestedProcedureID PerformedProcedureStepID AdmissionID RequestingService CurrentPatientLocation"
    " PatientInstitutionResidence InsurancePlanIdentification RegionOfResidence Allergies MedicalAlerts"
    " PerformedStationName DetectorID GantryID PlateID InstitutionAddress ImageComments PatientComments"
    " AdditionalPatientHistory StudyComments AcquisitionComments DerivationDescription TextComments"
    " RetrieveAETitle PerformedStationAETitle ScheduledStationAETitle FilterType ContrastBolusAgent Manufacturer"
    " ManufacturerModelName SoftwareVersions"
)
DATES = _words(
    "SeriesDate AcquisitionDate ContentDate AdmittingDate LastMenstrualDate AcquisitionDateTime"
    " DateOfLastCalibration PerformedProcedureStepStartDate PerformedProcedureStepEndDate"
)
UIDS = ("FrameOfReferenceUID", "DeviceUID", "SynchronizationFrameOfReferenceUID")
# Longest values of the value representations in characters (PS3.5 6.2).
_LONGEST = {"SH": 16, "AE": 16, "CS": 16, "LO": 64}
_SYLLABLES = _words("bra dek fil gor hun jap kel lom nur pex qua rit sov tul vim wex yor zab")
_SIDE = 64


@dataclass
class Planter:
    """Makes identities and remembers them.

    Args:
        seed: of all names, ids, dates and pixels.
    """

    seed: int
    needles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def plant(self, text: str) -> str:
        """Remember a text; returns it."""
        self.needles.append(text)
        return text

    def word(self, syllables: int = 4) -> str:
        return "".join(self.random.choice(_SYLLABLES, syllables)).capitalize()

    def name(self) -> str:
        """A person's name as DICOM has it; family name and whole name are needles."""
        family = self.plant(self.word())
        return self.plant(f"{family}^{self.word()}")

    def identifier(self, length: int = 10) -> str:
        return self.plant("".join(map(str, self.random.integers(0, 10, length))))

    def day(self, first: int = 1931, last: int = 2019) -> str:
        """A date; no planted date is the first of January, which is also a beginning of other numbers."""
        start = date(first, 1, 2)
        moved = start + timedelta(days=int(self.random.integers(0, 365 * (last - first))))
        return self.plant(moved.strftime("%Y%m%d"))

    def uid(self) -> str:
        return self.plant("1.2.826.0.1." + ".".join(map(str, self.random.integers(10_000, 10**9, 4))))

    def pixels(self, dtype: type = np.uint8) -> np.ndarray:
        """A grey picture [64, 64] that is like no other of the archive."""
        y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
        fx, fy, phase = self.random.uniform(1, 6), self.random.uniform(1, 6), self.random.uniform(0, 6)
        waves = np.sin(fx * x * 6 + phase) * np.cos(fy * y * 6) + self.random.normal(0, 0.05, (_SIDE, _SIDE))
        scaled = (waves - waves.min()) / np.ptp(waves)
        return (scaled * np.iinfo(dtype).max).astype(dtype) if dtype is np.uint8 else (scaled * 4095).astype(dtype)


@dataclass(frozen=True)
class Patient:
    """A patient: what all of the patient's files share."""

    name: str
    number: str
    birth: str
    study: str
    study_uid: str
    series_uid: str
    accession: str


def plant(folder: Path, patients: int, seed: int = 0) -> list[str]:
    """Write an archive of DICOM, PNG, JPEG and TIFF files, also in a zip and a tar.gz, in which identity is planted.

    Each patient has three DICOM files (explicit VR with every attribute; implicit VR without preamble; deflated, in
    the zip), a PNG, a JPEG and a TIFF. Identity is in attributes, nested sequences, private tags, overlays, curves, the
    preamble, the file meta information, names of files, folders and members, comments of the zip, and the metadata of
    pictures. The pixels of all files differ, and hold no text.

    Args:
        folder: an empty folder.
        patients: number of patients; each brings more than 100 needles.
        seed: of everything.

    Returns:
        The needles: names, ids, dates and texts.
    """
    planter = Planter(seed)
    archive, members = io.BytesIO(), []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for _ in range(patients):
            patient = new_patient(planter)
            family = patient.name.split("^")[0]
            place = folder / f"{family}_{patient.number}" / patient.study
            place.mkdir(parents=True)
            (place / f"{planter.word()}.dcm").write_bytes(_rich_dicom(planter, patient))
            (place / planter.identifier()).write_bytes(_bare_dicom(planter, patient))
            member = zipfile.ZipInfo(f"{family}/{planter.plant(planter.word())}.dcm")
            member.comment = planter.plant(planter.word()).encode()
            packed.writestr(member, _deflated_dicom(planter, patient), zipfile.ZIP_DEFLATED)
            (place / f"{planter.plant(planter.word())}.png").write_bytes(_png(planter))
            (place / f"{planter.plant(planter.word())}.jpg").write_bytes(_jpeg(planter))
            members.append((f"{family}/{planter.plant(planter.word())}.tif", _tiff(planter)))
        packed.comment = planter.plant(planter.word()).encode()
    (folder / f"{planter.plant(planter.word())}.zip").write_bytes(archive.getvalue())
    with tarfile.open(folder / f"{planter.plant(planter.word())}.tar.gz", "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.uname = len(content), planter.plant(planter.word())
            tar.addfile(info, io.BytesIO(content))
    return planter.needles


def new_patient(planter: Planter) -> Patient:
    return Patient(
        name=planter.name(),
        number=planter.identifier(),
        birth=planter.day(last=1990),
        study=planter.day(first=1995),
        study_uid=planter.uid(),
        series_uid=planter.uid(),
        accession=planter.identifier(),
    )


def header(planter: Planter, patient: Patient) -> Dataset:
    """A header with planted identity in every attribute of the lists above."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    _identify(dataset, planter, patient)
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientAge, dataset.PatientSex = "CHEST", "PA", "047Y", "F"
    dataset.InstitutionName = planter.plant(f"{planter.word()} Hospital")
    for keyword in NAMES:
        setattr(dataset, keyword, planter.name())
    for keyword in TEXTS:
        setattr(dataset, keyword, planter.plant(_text(planter, dictionary_VR(tag_for_keyword(keyword)))))
    for keyword in DATES:
        setattr(dataset, keyword, planter.day() + "101500" * (dictionary_VR(tag_for_keyword(keyword)) == "DT"))
    for keyword in UIDS:
        setattr(dataset, keyword, planter.uid())
    dataset.RequestAttributesSequence = Sequence([_nested(planter, depth) for depth in (1, 3)])
    dataset.OtherPatientIDsSequence = Sequence([_nested(planter, 1)])
    block = dataset.private_block(0x0009, planter.plant(planter.word()), create=True)
    block.add_new(1, "LO", planter.plant(planter.word()))
    block.add_new(2, "PN", planter.name())
    block.add_new(3, "UN", planter.plant(planter.word(6)).encode())
    block.add_new(4, "SQ", Sequence([_nested(planter, 1)]))
    _add_overlay_and_curve(dataset, planter)
    dataset.add_new(0xFFFCFFFC, "OB", planter.plant(planter.word(6)).encode().ljust(64, b"\0"))
    return dataset


def _identify(dataset: Dataset, planter: Planter, patient: Patient) -> None:
    """What every file has, and what its pixels need."""
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = patient.name, patient.number, patient.birth
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = patient.study_uid, patient.series_uid
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CTImageStorage, planter.uid(), "CT"
    dataset.StudyDate, dataset.AccessionNumber = patient.study, patient.accession
    dataset.Rows = dataset.Columns = _SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = planter.pixels(np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"


def _text(planter: Planter, representation: str) -> str:
    """A text that no other attribute has, of the length that a representation allows."""
    if representation in ("LT", "ST", "UT"):
        return f"{planter.word()} {planter.word()} of {planter.word()}"
    text = planter.word(5)[: _LONGEST.get(representation, 64)]
    return text.upper() if representation in ("CS", "AE") else text


def _nested(planter: Planter, depth: int) -> Dataset:
    """An item with identity, in as many sequences as ``depth`` says."""
    item = Dataset()
    item.PatientID, item.RequestedProcedureID = planter.identifier(), planter.plant(planter.word())
    item.ScheduledProcedureStepDescription, item.ScheduledPerformingPhysicianName = (
        planter.plant(planter.word()),
        planter.name(),
    )
    if depth > 1:
        item.RequestedProcedureCodeSequence = Sequence([_nested(planter, depth - 1)])
    return item


def _add_overlay_and_curve(dataset: Dataset, planter: Planter) -> None:
    """An overlay whose bits and a curve whose points are letters, and their descriptions."""
    bits = planter.plant(planter.word(6)).encode().ljust(_SIDE * _SIDE // 8, b"\0")
    for tag, representation, value in (
        (0x60000010, "US", _SIDE),
        (0x60000011, "US", _SIDE),
        (0x60000022, "LO", planter.plant(planter.word())),
        (0x60000040, "CS", "G"),
        (0x60000050, "SS", [1, 1]),
        (0x60000100, "US", 1),
        (0x60000102, "US", 0),
        (0x60001500, "LO", planter.plant(planter.word())),
        (0x60003000, "OW", bits),
        (0x50000020, "CS", "TAC"),
        (0x50000022, "LO", planter.plant(planter.word())),
        (0x50002500, "LO", planter.plant(planter.word())),
        (0x50003000, "OW", planter.plant(planter.word(6)).encode().ljust(64, b"\0")),
    ):
        dataset.add_new(tag, representation, value)


def _rich_dicom(planter: Planter, patient: Patient) -> bytes:
    dataset = header(planter, patient)
    dataset.file_meta = _meta(dataset, ExplicitVRLittleEndian)
    dataset.file_meta.SourceApplicationEntityTitle = planter.plant(planter.word()[:16].upper())
    dataset.file_meta.SendingApplicationEntityTitle = planter.plant(planter.word()[:16].upper())
    dataset.file_meta.PrivateInformationCreatorUID = planter.uid()
    dataset.file_meta.PrivateInformation = planter.plant(planter.word(6)).encode().ljust(32, b"\0")
    dataset.preamble = planter.plant(planter.word(6)).encode().ljust(128, b"\0")
    return _written(dataset, enforce_file_format=True)


def _bare_dicom(planter: Planter, patient: Patient) -> bytes:
    """Implicit VR without preamble and meta information, in Latin letters with accents, by a maker that is a name."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    _identify(dataset, planter, patient)
    dataset.OperatorsName = planter.plant(f"M\u00fcller{planter.word()}^\u00c9lo\u00efse")
    dataset.Manufacturer = planter.plant(f"{planter.word()} {planter.word()}")
    dataset.BodyPartExamined = planter.plant(planter.word()[:16].upper())
    return _written(dataset, implicit_vr=True, little_endian=True)


def _deflated_dicom(planter: Planter, patient: Patient) -> bytes:
    """Deflated, with a name in Japanese."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    _identify(dataset, planter, patient)
    kanji = "".join(planter.random.choice(list("山田川村林森石橋松竹梅桜"), 4))
    dataset.ReferringPhysicianName = f"{planter.name()}={planter.plant(kanji)}^太郎"
    dataset.file_meta = _meta(dataset, DeflatedExplicitVRLittleEndian)
    return _written(dataset, enforce_file_format=True)


def _meta(dataset: Dataset, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    return meta


def _written(dataset: Dataset, **options: bool) -> bytes:
    stream = io.BytesIO()
    dcmwrite(stream, dataset, **options)
    return stream.getvalue()


def _png(planter: Planter) -> bytes:
    notes = PngInfo()
    notes.add_text("Patient", planter.name())
    notes.add_text("Comment", planter.plant(f"{planter.word()} {planter.word()}"), zip=True)
    notes.add_itxt("Description", planter.plant(f"\u00c5sa {planter.word()}"), zip=True)
    notes.add_itxt("Author", planter.name())
    stream = io.BytesIO()
    Image.fromarray(planter.pixels()).save(stream, "PNG", pnginfo=notes, exif=_exif(planter))
    return stream.getvalue() + planter.plant(planter.word(6)).encode()


def _jpeg(planter: Planter) -> bytes:
    stream = io.BytesIO()
    comment = planter.plant(planter.word(6)).encode()
    Image.fromarray(planter.pixels()).save(stream, "JPEG", quality=95, comment=comment, exif=_exif(planter))
    return stream.getvalue() + planter.plant(planter.word(6)).encode()


def _exif(planter: Planter) -> Image.Exif:
    """EXIF with an orientation, which must stay, and with identity."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = planter.plant(planter.word(5))  # ImageDescription
    exif[0x013B] = planter.plant(planter.word(5))  # Artist
    exif[0x9C9D] = planter.plant(planter.word(5)).encode("utf-16-le") + b"\0\0"  # XPAuthor
    return exif


def _tiff(planter: Planter) -> bytes:
    stream = io.BytesIO()
    artist = planter.plant(planter.word(5))
    tags = [(315, "s", 0, artist, True), (316, "s", 0, planter.plant(planter.word(5)), True)]
    tifffile.imwrite(
        stream, planter.pixels(), description=planter.name(), software=planter.plant(planter.word(5)), extratags=tags
    )
    return stream.getvalue()
