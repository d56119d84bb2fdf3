"""Reads attributes of a DICOM header that may be damaged, without an error and without a message about its values.

The import of this module silences the warnings and the logger of pydicom in the process.
"""

import logging
import warnings
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from medfocus.pipeline.identity.pseudonyms import trimmed

# Messages of pydicom quote values. A process that reads headers drops them in all of its threads.
warnings.filterwarnings("ignore", module=r"pydicom(\..*)?$")
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def text_of(header: Dataset, keyword: str) -> str | None:
    r"""The value of an attribute as text, without padding.

    Args:
        header: a header, or an item of a sequence.
        keyword: of the attribute.

    Returns:
        The text, whatever value representation the file has for it; several values are separated by ``\``, as in the
        file. A value that cannot be converted is taken byte for byte as ISO 8859-1. None where it is missing, empty,
        or a sequence.
    """
    tag = Tag(tag_for_keyword(keyword) or 0)
    try:
        value = header[tag].value if tag in header else None
    except Exception:  # pydicom's converters raise errors of any class on damaged values
        value = _raw(header, tag)
    return trimmed(_text(value)) or None


def first_text(header: Dataset, *keywords: str) -> str | None:
    """The first of several attributes that has a value."""
    return next((text for keyword in keywords if (text := text_of(header, keyword))), None)


def items_of(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is missing or damaged."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    try:
        value = header[tag].value if tag in header else None
        return list(value) if isinstance(value, Sequence) else []
    except Exception:  # as above
        return []


def _raw(header: Dataset, tag: Any) -> Any:
    """The bytes of an element that pydicom could not convert."""
    element = header.get_item(tag, keep_deferred=True)
    return element.value if isinstance(element, RawDataElement) else None


def _text(value: Any) -> str:
    """A value of any type as text."""
    if value is None or isinstance(value, Sequence):
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, MultiValue | list | tuple):
        return "\\".join(_text(part) for part in value)
    return str(value)
