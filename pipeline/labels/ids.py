"""Finds the items that a row of a label file names by an id: one row may name all images of a study or a patient.

The items have pseudonyms in place of ids, so that the ids of the label file are turned into pseudonyms too.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from medfocus.pipeline.labels.items import Item, ItemNames, Items, Pseudonym
from medfocus.pipeline.labels.names import Way, path_of


@dataclass(frozen=True)
class Key:
    """An id by which rows are joined.

    Args:
        column: its column in label files.
        kind: its kind, for the pseudonym.
        of_item: gives its pseudonym in an item.
    """

    column: str
    kind: str
    of_item: Callable[[Item], str | None]


# The most specific first.
KEYS = (
    Key("sop_instance_uid", "instance", attrgetter("instance_id")),
    Key("series_instance_uid", "series", attrgetter("series_id")),
    Key("study_instance_uid", "study", attrgetter("study_id")),
    Key("accession_number", "accession", attrgetter("accession")),
    Key("patient_id", "patient", attrgetter("patient_id")),
)


class IdMatches:
    """The items that rows name by ids; a row may name many.

    Args:
        texts: id in each row that goes by it, by the index of the row.

    Attributes:
        ambiguous: always empty, for the sake of ``names.NameMatches``.
    """

    def __init__(self, texts: Mapping[int, str]):
        self.texts = texts
        self.ambiguous: list[int] = []
        self._positions, self._rows = array("q"), array("q")
        self._found: set[int] = set()

    @property
    def found(self) -> int:
        """Number of rows that name items."""
        return len(self._found)

    def is_missing(self, row: int) -> bool:
        """Whether a row names no item."""
        return row not in self._found

    def pairs(self) -> Iterator[tuple[int, int, Way]]:
        """Position of the item, row, and way, for every item that a row names."""
        return ((position, row, Way.EXACT) for position, row in zip(self._positions, self._rows, strict=True))

    def find(self, wanted: Mapping[str, Sequence[int]], id_of: Callable[[Item], str | None], items: Items) -> None:
        """Find the items that have one of the wanted ids.

        Args:
            wanted: rows by the id that they name.
            id_of: gives the id of an item.
            items: gives every item.
        """
        for position, item in enumerate(items()):
            for row in wanted.get(id_of(item) or "", ()):
                self._positions.append(position)
                self._rows.append(row)
                self._found.add(row)


def match_ids(texts: Mapping[int, str], key: Key, items: Items, pseudonym: Pseudonym) -> IdMatches:
    """Match ids with items.

    Args:
        texts: id in each row that goes by this key, by the index of the row.
        key: the key.
        items: gives every item.
        pseudonym: gives the pseudonym of an id.
    """
    wanted: dict[str, list[int]] = defaultdict(list)
    for row, text in texts.items():
        wanted[pseudonym(key.kind, text)].append(row)
    matches = IdMatches(texts)
    matches.find(wanted, key.of_item, items)
    return matches


def match_item_names(names: Mapping[int, str], item_names: ItemNames, items: Items) -> IdMatches:
    """Match names of files with items that have pseudonyms in place of paths, and perhaps several images each.

    Folders that all names have in front are removed one by one until names match, since the source is not known here.

    Args:
        names: name in each row, by the index of the row.
        item_names: gives the names of items.
        items: gives every item.
    """
    matches = IdMatches(names)
    paths = {row: path_of(name) for row, name in names.items()}
    for cut in range(_common_depth(paths.values()) + 1):
        wanted: dict[str, list[int]] = defaultdict(list)
        for row, path in paths.items():
            own = "/".join(path.split("/")[cut:])
            for name in {own, *item_names(own)}:
                wanted[name].append(row)
        matches.find(wanted, attrgetter("path"), items)
        if matches.found:
            break
    return matches


def _common_depth(paths: Collection[str]) -> int:
    """Number of folders that all paths have in common, from the front."""
    depth = 0
    for parts in zip(*(path.split("/")[:-1] for path in paths), strict=False):  # up to the shortest
        if len(set(parts)) > 1:
            break
        depth += 1
    return depth
