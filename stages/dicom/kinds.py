"""Which DICOM objects hold an image that a viewer shows, by their SOP class (PS3.4 B.5, PS3.6 table A-1)."""

from pydicom import Dataset

from medfocus.stages.dicom.attributes import text_of

_STORAGE = "1.2.840.10008.5.1.4.1.1."

# SOP classes without an image. A name that ends in a point stands for all classes below it.
_KINDS = {
    "1.2.840.10008.1.3.10": "directory (DICOMDIR)",
    _STORAGE + "4.2": "spectroscopy",
    _STORAGE + "8": "overlay",
    _STORAGE + "9": "curve",
    _STORAGE + "9.": "waveform",
    _STORAGE + "10": "modality LUT",
    _STORAGE + "11": "VOI LUT",
    _STORAGE + "11.": "presentation state",
    _STORAGE + "27": "stored print",
    _STORAGE + "40": "transcoded image list",
    _STORAGE + "66": "raw data",
    _STORAGE + "66.": "registration, segmentation or tracks",
    _STORAGE + "66.4": "segmentation",
    _STORAGE + "66.5": "segmentation",
    _STORAGE + "66.7": "segmentation",
    _STORAGE + "67": "value mapping",
    _STORAGE + "68.": "surface scan",
    _STORAGE + "77.1.5.3": "stereometric relationship",
    _STORAGE + "78.": "eye measurement",
    _STORAGE + "79.1": "eye measurement",
    _STORAGE + "80.1": "eye measurement",
    _STORAGE + "88.": "structured report",
    _STORAGE + "88.59": "key object selection",
    _STORAGE + "90.1": "assessment",
    _STORAGE + "91.1": "annotations",
    _STORAGE + "104.": "encapsulated document",
    _STORAGE + "129": "curve",
    _STORAGE + "131": "structured display",
    _STORAGE + "200.": "protocol",
    _STORAGE + "201.": "inventory",
    _STORAGE + "481.": "radiotherapy object",
    "1.2.840.10008.5.1.4.34.": "radiotherapy object",
    "1.2.840.10008.5.1.4.38.": "hanging protocol",
    "1.2.840.10008.5.1.4.39.": "colour palette",
    "1.2.840.10008.5.1.4.43.": "implant template",
    "1.2.840.10008.5.1.4.44.": "implant template",
    "1.2.840.10008.5.1.4.45.": "implant template",
}
# Classes with an image below an entry that ends in a point.
_IMAGES = {_STORAGE + "481.1"}  # RT Image


def not_an_image(header: Dataset) -> str | None:
    """What an object is that holds no image of its own.

    A segmentation is no image here: its samples are labels of regions of another image. So is a dose grid.

    Args:
        header: as ``read_header`` returns it.

    Returns:
        A short name of its kind, such as "structured report"; None for an object whose pixels are to be shown. Objects
        of private or missing SOP classes are shown where they name rows and columns.

    Raises:
        ImageError: Undecodable where the SOP class cannot be read.
    """
    sop_class = text_of(header, "SOPClassUID") or text_of(header.file_meta, "MediaStorageSOPClassUID")
    if sop_class in _IMAGES:
        return None
    parts = sop_class.split(".")
    for end in range(len(parts), 0, -1):
        start = ".".join(parts[:end])
        kind = _KINDS.get(start if end == len(parts) else start + ".")
        if kind is not None:
            return kind
    if sop_class.startswith(_STORAGE) or ("Rows" in header and "Columns" in header):
        return None
    return "object without an image"
