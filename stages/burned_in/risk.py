"""Whether the header of an image signals a risk that text is burned into its pixels."""

import re

from pydicom import Dataset
from pydicom.uid import UID

_SC = "1.2.840.10008.5.1.4.1.1.7"
_ULTRASOUND = {f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("3", "3.1", "6", "6.1", "6.2", "6.3")}
_VISIBLE_LIGHT = "1.2.840.10008.5.1.4.1.1.77."
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_TOMOGRAPHY_OF_EYE = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
# Modalities (PS3.3 C.7.3.1.1.1) whose images mostly bear text: a statement that there is none is not believed.
_WITH_TEXT = {
    "US": "ultrasound",
    "BDUS": "ultrasound",
    "IVUS": "ultrasound",
    "DOC": "a document",
    "HC": "a printed image",
    "FID": "a printed image",
    "BMD": "a sheet of bone densities",
    "SC": "a secondary capture",
    "ECG": "a printed curve",
    "EPS": "a printed curve",
    "HD": "a printed curve",
    "OPV": "a sheet of visual fields",
    "SMR": "a report",
    "SRF": "a report",
}
# Modalities of cameras, which may write on their images.
_CAMERAS = {"ES", "XC", "GM", "OP", "OPM", "DMS", "LS"}
_CONVERSIONS = {
    "DF": "digitised film",
    "DV": "digitised video",
    "SD": "a scanned document",
    "SI": "a scanned image",
    "DRW": "a drawing",
    "WSD": "made at a workstation",
    "SYN": "made by a program",
    "DI": "taken from a digital interface",
}
_SCREENS = re.compile(r"SCREEN|CAPTURE|SNAPSHOT|\bDOSE\b|\bREPORT\b|\bPROTOCOL\b", re.IGNORECASE)
_SHEETS = re.compile(r"dose|screen ?(save|shot|cap)|patient protocol|\breport\b|\bsummary\b", re.IGNORECASE)
# Values of ImageType of pictures that were computed from slices, without their text.
_REFORMATS = {"MPR", "REFORMATTED", "RESAMPLED", "PROJECTION IMAGE", "CSA MPR", "MIP", "MINIP"}


def risk_of(header: Dataset | None) -> str | None:
    """The risk that text is burned into an image, by its header.

    ``BurnedInAnnotation`` (PS3.3 C.7.6.1) decides where it is YES. NO is believed of cameras and derived images. It is
    not believed of images that mostly bear text (secondary captures, ultrasound, screenshots, documents, digitised
    film), since converters and devices write NO there by default.

    Args:
        header: of a DICOM object; None for any other image, of which nothing is known.

    Returns:
        What the image is, for a message; None where the header signals no risk.
    """
    if header is None:
        return None
    stated = _text(header, "BurnedInAnnotation").upper()
    if stated == "YES":
        return "marked by BurnedInAnnotation"
    kind = _with_text(header)
    return kind or (None if stated == "NO" else _perhaps_with_text(header))


def _with_text(header: Dataset) -> str | None:
    """What an image is whose kind mostly bears text."""
    sop_class, modality = _text(header, "SOPClassUID"), _text(header, "Modality").upper()
    if sop_class == _SC or sop_class.startswith(f"{_SC}."):
        return _CONVERSIONS.get(_text(header, "ConversionType").upper(), "a secondary capture")
    if sop_class in _ULTRASOUND:
        return "ultrasound"
    if modality in _WITH_TEXT:
        return _WITH_TEXT[modality]
    image_type = _values(header, "ImageType")
    if any(_SCREENS.search(value) for value in image_type) or _SHEETS.search(_text(header, "SeriesDescription")):
        return "a screenshot or a sheet"
    if sop_class == _WHOLE_SLIDE and {"LABEL", "OVERVIEW"} & set(image_type):
        return "the label of a slide"
    return _CONVERSIONS.get(_text(header, "ConversionType").upper())


def _perhaps_with_text(header: Dataset) -> str | None:
    """What an image is whose kind sometimes bears text."""
    sop_class, modality = _text(header, "SOPClassUID"), _text(header, "Modality").upper()
    if modality in _CAMERAS or (
        sop_class.startswith(_VISIBLE_LIGHT) and sop_class not in (_WHOLE_SLIDE, _TOMOGRAPHY_OF_EYE)
    ):
        return "a photograph"
    if modality == "OT":
        return "of the modality OT (other)"
    image_type = _values(header, "ImageType")
    if "SECONDARY" in image_type[1:2] and not _REFORMATS & set(image_type):
        return "a derived, secondary image"
    if not modality and not _is_standard(sop_class):
        return "of no known modality and SOP class"
    return None


def _is_standard(sop_class: str) -> bool:
    return UID(sop_class).name != sop_class


def _text(header: Dataset, keyword: str) -> str:
    """The value of an attribute as a text; empty where there is none."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


def _values(header: Dataset, keyword: str) -> list[str]:
    """The values of an attribute in capital letters."""
    value = header.get(keyword) or []
    return [str(part).strip().upper() for part in ([value] if isinstance(value, str) else value)]
