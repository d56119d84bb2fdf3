"""The columns of a label file, and how headers spell them."""

import re
import unicodedata
from collections.abc import Sequence

from medfocus.pipeline.errors import UsageError

# The columns of ids that DICOM headers hold, the most specific first.
ID_COLUMNS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid", "accession_number")
COLUMNS = ("file", "image_id", *ID_COLUMNS, "label", "patient_id", "site")
# Other spellings, without blanks, hyphens, underscores and differences of letter case. A column under its own name
# comes before one under another spelling.
_SPELLINGS = {
    "sop_instance_uid": ("sopuid", "instanceuid"),
    "series_instance_uid": ("seriesuid",),
    "study_instance_uid": ("studyuid",),
    "accession_number": ("accession", "accessionno"),
    "patient_id": ("mrn",),  # medical record number: what most hospitals store as Patient ID
}
_COLUMN_OF = {column.replace("_", ""): column for column in COLUMNS} | {
    spelling: column for column, spellings in _SPELLINGS.items() for spelling in spellings
}
# UTF-8's byte order mark where a file in UTF-8 was read as Windows-1252 and saved again.
_MARK_AS_TEXT = "\u00ef\u00bb\u00bf"
# Characters without width, as the inside of a regular expression's brackets.
INVISIBLE = "\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"


def column_of(name: str) -> str:
    """The column that a name of a header means, whatever its letter case and blanks; empty for other names."""
    return _COLUMN_OF.get(_letters(name), "")


def columns_of(header: Sequence[str]) -> list[str]:
    """The columns that a header names, with repetitions."""
    return [column for column in map(column_of, header) if column]


def places_of(header: Sequence[str], uri: str) -> dict[str, int]:
    """Index of each column in a header.

    Args:
        header: names of the columns as they are written.
        uri: URI of the file, for messages.

    Raises:
        UsageError: a column is missing, or is there several times.
    """
    places: dict[str, int] = {}
    for column in sorted(set(columns_of(header))):
        own = [place for place, name in enumerate(header) if _letters(name) == column.replace("_", "")]
        named = own or [place for place, name in enumerate(header) if column_of(name) == column]
        if len(named) > 1:
            raise UsageError(f"{uri}: column {column} is there {len(named)} times; keep one of them")
        places[column] = named[0]
    if not {"file", "image_id", "patient_id", *ID_COLUMNS} & places.keys():
        raise UsageError(
            f"{uri}: column file is missing; the header must name file (or image_id) and label; in place of file also"
            f" {', '.join(ID_COLUMNS)} or patient_id"
        )
    if "label" not in places:
        raise UsageError(f"{uri}: column label is missing; the header must name file (or image_id) and label")
    return places


def _letters(name: str) -> str:
    name = re.sub(f"[{INVISIBLE}]", "", name).removeprefix(_MARK_AS_TEXT)
    return re.sub(r"[\s_-]", "", unicodedata.normalize("NFKC", name)).casefold()
