"""The attributes of DICOM that leave an archive, in which form. Everything else is removed."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["pseudonym", "term", "band", "day", "number", "device"]
"""In which form a value leaves.

``pseudonym``: keyed, see ``pseudonyms``. ``term``: as it is, if it is on a closed list. ``band``: as a band of ages.
``day``: as days from the patient's first study. ``number``: as it is, if it is a number. ``device``: the name of a
closed list, else a pseudonym.
"""


@dataclass(frozen=True)
class Allowed:
    """An attribute that leaves.

    Attributes:
        keyword: of the attribute (PS3.6).
        column: of the shard row.
        form: in which form the value leaves.
    """

    keyword: str
    column: str
    form: Form


ALLOWED = (
    Allowed("PatientID", "patient_id", "pseudonym"),
    Allowed("StudyInstanceUID", "study_id", "pseudonym"),
    Allowed("SeriesInstanceUID", "series_id", "pseudonym"),
    Allowed("SOPInstanceUID", "instance_id", "pseudonym"),
    Allowed("InstitutionName", "site", "pseudonym"),
    Allowed("StationName", "site", "pseudonym"),
    Allowed("StudyDate", "study_day", "day"),
    Allowed("Modality", "modality", "term"),
    Allowed("ViewPosition", "view", "term"),
    Allowed("ViewCodeSequence", "view", "term"),
    Allowed("ImageLaterality", "laterality", "term"),
    Allowed("Laterality", "laterality", "term"),
    Allowed("FrameLaterality", "laterality", "term"),
    Allowed("BodyPartExamined", "body_part", "term"),
    Allowed("PatientSex", "sex", "term"),
    Allowed("PatientAge", "age_band", "band"),
    Allowed("PatientBirthDate", "age_band", "band"),
    Allowed("Manufacturer", "manufacturer", "device"),
    Allowed("ManufacturerModelName", "device_model", "device"),
    Allowed("PixelSpacing", "spacing", "number"),
    Allowed("ImagerPixelSpacing", "spacing", "number"),
    Allowed("NominalScannedPixelSpacing", "spacing", "number"),
    Allowed("ImagePositionPatient", "position", "number"),
    Allowed("WindowCenter", "window", "number"),
    Allowed("WindowWidth", "window", "number"),
)
"""What leaves. The pixels leave too, as pictures."""
