"""What a shard row says of a DICOM object: pseudonyms, and values of closed lists."""

from dataclasses import dataclass

from pydicom import Dataset

from medfocus.pipeline.identity import terms
from medfocus.pipeline.identity.attributes import first_text, items_of, text_of
from medfocus.pipeline.identity.dates import age_band, day_number
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, patient_pseudonym

# The date of a study, which a file may have in another place only.
_STUDY_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime")
_SEXES, _LATERALITIES = ("M", "F", "O"), ("R", "L", "U", "B")


@dataclass(frozen=True)
class Identity:
    """A DICOM object without the identity of its patient. None where a value is missing, or not on its closed list.

    Attributes:
        patient_id: pseudonym of the patient id.
        study_id: pseudonym of the Study Instance UID, under 2.25.
        series_id: pseudonym of the Series Instance UID, under 2.25.
        instance_id: pseudonym of the SOP Instance UID, under 2.25.
        accession: pseudonym of the accession number.
        study_date: days from 1900-01-01 to the study. It identifies, and must become ``dates.study_day``.
        modality: defined term, such as ``CT``.
        view: view position such as ``MLO``, or the meaning of a view code.
        laterality: R, L, U (unpaired) or B (both).
        body_part: defined term, such as ``CHEST``.
        age_band: ``0-4`` to ``85-89``, or ``90+``.
        sex: M, F or O.
        manufacturer: name of a closed list, else a pseudonym.
        device_model: name of closed words and codes, else a pseudonym.
        site: pseudonym of the institution, else of the station.
    """

    patient_id: str | None
    study_id: str | None
    series_id: str | None
    instance_id: str | None
    accession: str | None
    study_date: int | None
    modality: str | None
    view: str | None
    laterality: str | None
    body_part: str | None
    age_band: str | None
    sex: str | None
    manufacturer: str | None
    device_model: str | None
    site: str | None


def describe(header: Dataset, pseudonyms: Pseudonyms) -> Identity:
    """Take from a header what may leave (``allowed.ALLOWED``).

    Damaged values, wrong value representations and character sets, and several values in the place of one raise no
    error and cause no warning.

    Args:
        header: a header, with or without pixel data.
        pseudonyms: the maker of pseudonyms.
    """
    date = first_text(header, *_STUDY_DATES)
    maker, model = text_of(header, "Manufacturer"), text_of(header, "ManufacturerModelName")
    return Identity(
        patient_id=patient_pseudonym(pseudonyms, text_of(header, "PatientID")),
        study_id=_uid(header, "StudyInstanceUID", pseudonyms),
        series_id=_uid(header, "SeriesInstanceUID", pseudonyms),
        instance_id=_uid(header, "SOPInstanceUID", pseudonyms),
        accession=_accession(header, pseudonyms),
        study_date=day_number(date),
        modality=terms.modality(text_of(header, "Modality")),
        view=terms.view(text_of(header, "ViewPosition"), _view_code(header)),
        laterality=_laterality(header),
        body_part=terms.body_part(text_of(header, "BodyPartExamined")),
        age_band=age_band(text_of(header, "PatientAge"), text_of(header, "PatientBirthDate"), date),
        sex=_one_of(_SEXES, text_of(header, "PatientSex")),
        manufacturer=terms.maker(maker) or _device(maker, pseudonyms),
        device_model=terms.model(model) or _device(model, pseudonyms),
        site=_site(header, pseudonyms),
    )


def _uid(header: Dataset, keyword: str, pseudonyms: Pseudonyms) -> str | None:
    text = text_of(header, keyword)
    return pseudonyms.uid(text) if text else None


def _accession(header: Dataset, pseudonyms: Pseudonyms) -> str | None:
    text = text_of(header, "AccessionNumber")
    return pseudonyms.of("accession", text) if text else None


def _device(text: str | None, pseudonyms: Pseudonyms) -> str | None:
    """The pseudonym of a maker or a model that is on no list; blanks and letter case do not count."""
    return pseudonyms.of("device", " ".join(text.casefold().split())) if text else None


def _site(header: Dataset, pseudonyms: Pseudonyms) -> str | None:
    """The pseudonym of the institution, else of the station; blanks and letter case do not count."""
    if institution := text_of(header, "InstitutionName"):
        return pseudonyms.of("site", " ".join(institution.casefold().split()))
    station = text_of(header, "StationName")
    return pseudonyms.of("station", " ".join(station.casefold().split())) if station else None


def _view_code(header: Dataset) -> tuple[str | None, str | None]:
    """Value and scheme of the first view code."""
    item = next(iter(items_of(header, "ViewCodeSequence")), Dataset())
    return text_of(item, "CodeValue"), text_of(item, "CodingSchemeDesignator")


def _laterality(header: Dataset) -> str | None:
    """The side of the image, else of the series, else of all frames of an enhanced object."""
    groups = items_of(header, "SharedFunctionalGroupsSequence")
    frames = (text_of(item, "FrameLaterality") for group in groups for item in items_of(group, "FrameAnatomySequence"))
    places = (text_of(header, "ImageLaterality"), text_of(header, "Laterality"), *frames)
    return next((side for place in places if (side := _one_of(_LATERALITIES, place))), None)


def _one_of(terms: tuple[str, ...], text: str | None) -> str | None:
    term = (text or "").upper()
    return term if term in terms else None
