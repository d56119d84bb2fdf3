"""What label files are joined with: the items of an archive."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """A file of the archive, or a member of a zip or tar, with the ids that a label file may name.

    Args:
        image_id: its name in the shards.
        path: its path below the source, with slashes; where this is not known, its name, which may be a pseudonym.
        patient_id: pseudonym of the patient from the header; None where it has none.
        study_id: pseudonym of the Study Instance UID.
        series_id: pseudonym of the Series Instance UID.
        instance_id: pseudonym of the SOP Instance UID.
        accession: pseudonym of the accession number.
    """

    image_id: str
    path: str
    patient_id: str | None = None
    study_id: str | None = None
    series_id: str | None = None
    instance_id: str | None = None
    accession: str | None = None


# Gives every item of an archive, in the same order at each call: the items need not all be in memory.
Items = Callable[[], Iterable[Item]]
# Gives the pseudonym of an id. The first argument is its kind: instance, series, study, accession or patient.
Pseudonym = Callable[[str, str], str]

# Gives the names, as ``Item.path`` has them, that an item can have whose path below the source is this.
ItemNames = Callable[[str], Sequence[str]]


def keep_text(kind: str, text: str) -> str:
    """The pseudonym of an id where ids are kept as they are: the id."""
    return text
