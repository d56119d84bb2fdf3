"""Finds the item that a name in a label file means.

A name is the path of an item, or the same path in another spelling. The closest spelling counts.
"""

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import chain
from pathlib import PurePosixPath
from urllib.parse import unquote, unquote_to_bytes

from medfocus.pipeline.data.local_tree import decoded
from medfocus.pipeline.labels.items import Item, Items
from medfocus.pipeline.labels.reader import strip_blanks


class Way(IntEnum):
    """How the spelling of a name differs from that of the item, the closest first."""

    EXACT = 0
    FILE_NAME = 1  # the path is the file's name in URL encoding
    PATH = 2
    UNICODE = 3
    CASE = 4
    NO_SUFFIX = 5
    URL = 6
    END = 7  # the name is the end of the path: the name of the file alone, or with some of its folders


WAY_TEXTS = {
    Way.FILE_NAME: "by the name of the file",
    Way.PATH: "by another spelling of the path",
    Way.UNICODE: "by another Unicode form",
    Way.CASE: "by another letter case",
    Way.NO_SUFFIX: "without the suffix",
    Way.URL: "in URL encoding",
    Way.END: "by the end of the path",
}
_LOCAL_URI = re.compile(r"file:/+(localhost/+)?", re.IGNORECASE)
_NOT_FOUND = 255


class NameMatches:
    """The closest item of each name. A path may have several items: the frames of a file.

    Args:
        texts: name in each row that goes by its name, by the index of the row.

    Attributes:
        folder: whether all names have the same folder in front that is not in the path of the source; it is taken for
            the source.
    """

    def __init__(self, texts: Mapping[int, str]):
        self.texts = texts
        self.folder = False
        size = max(texts, default=-1) + 1
        self._ways = bytearray([_NOT_FOUND]) * size
        self._positions = array("q", [-1]) * size
        self._paths = array("q", [0]) * size  # hash of the path, so that a million need no texts
        self._several = bytearray(size)
        self._more: set[tuple[int, int, int]] = set()  # row, way and position of further items of the same path

    def add(self, row: int, way: Way, position: int, item: Item) -> None:
        """Add an item that a row names, and its position; a closer way replaces the items of a looser one."""
        path = hash(item.path)
        if way < self._ways[row]:
            self._ways[row], self._positions[row], self._paths[row], self._several[row] = way, position, path, 0
        elif way == self._ways[row] and path != self._paths[row]:
            self._several[row] = 1
        elif way == self._ways[row] and position != self._positions[row]:
            self._more.add((row, way, position))

    @property
    def found(self) -> int:
        """Number of rows that name one path."""
        return len(self._ways) - self._ways.count(_NOT_FOUND) - sum(self._several)

    @property
    def ambiguous(self) -> list[int]:
        """Rows whose names fit several paths equally well."""
        return [row for row, several in enumerate(self._several) if several]

    def is_missing(self, row: int) -> bool:
        """Whether a row names no item."""
        return self._ways[row] == _NOT_FOUND

    def pairs(self) -> Iterator[tuple[int, int, Way]]:
        """Position of the item, row, and way, for every item of a row that names one path."""
        firsts = ((row, self._ways[row], position) for row, position in enumerate(self._positions))
        for row, way, position in chain(firsts, sorted(self._more)):
            if way == self._ways[row] != _NOT_FOUND and not self._several[row]:
                yield position, row, Way(way)


def match_names(names: Mapping[int, str], items: Items, folders: Sequence[str] = ()) -> NameMatches:
    """Match names with items: exactly, then the names that are left by other spellings, then by the end of the path.

    Args:
        names: name in each row, by the index of the row.
        items: gives every item.
        folders: paths and URIs of the source, which may stand in front of a name.
    """
    matches = NameMatches(names)
    by_name: dict[str, list[int]] = defaultdict(list)
    for row, name in names.items():
        by_name[name].append(row)
    for position, item in enumerate(items()):
        for way, name in _exact_names(item):
            for row in by_name.get(name, ()):
                matches.add(row, way, position, item)
    if left := list(filter(matches.is_missing, names)):
        fronts = sorted({path_of(folder) for folder in folders if path_of(folder)}, key=len, reverse=True)
        _match_loosely(matches, left, items, fronts)
        if not matches.found and not matches.ambiguous and (front := _common_folder(matches, left, items)):
            matches.folder = not any(f"/{source}".endswith(f"/{front}") for source in fronts)
            _match_loosely(matches, left, items, [front])
        if left := list(filter(matches.is_missing, left)):
            _match_ends(matches, left, items)
    return matches


def _exact_names(item: Item) -> Iterator[tuple[Way, str]]:
    yield Way.EXACT, item.path
    if item.image_id != item.path:
        yield Way.EXACT, item.image_id
    if name := _file_name(item.path):
        yield Way.FILE_NAME, name


def _match_loosely(matches: NameMatches, rows: Sequence[int], items: Items, fronts: list[str]) -> None:
    """Match rows by other spellings of their names.

    Args:
        matches: takes the items.
        rows: indices of the rows.
        items: as in ``match_names``.
        fronts: folders that are removed from the front of a name.
    """
    paths: dict[str, list[tuple[int, str, bool]]] = defaultdict(list)
    for row in rows:
        for path, encoded in spellings(matches.texts[row]):
            path = _strip_front(path, fronts)
            paths[fold(path)].append((row, path, encoded))
    for position, item in enumerate(items()):
        for spelling in filter(None, (item.path, _file_name(item.path))):
            own = path_of(spelling)
            for row, path, encoded in paths.get(fold(own), ()):
                matches.add(row, Way.URL if encoded else _way(own, path), position, item)
            bare = strip_suffix(own)
            for row, _, encoded in paths.get(fold(bare), ()) if bare != own else ():
                matches.add(row, Way.URL if encoded else Way.NO_SUFFIX, position, item)


def _way(own: str, path: str) -> Way:
    """How a path differs from that of the item, where both are equal but for their Unicode form and letter case."""
    if own == path:
        return Way.PATH
    return Way.UNICODE if _form(own) == _form(path) else Way.CASE


def _common_folder(matches: NameMatches, rows: Sequence[int], items: Items) -> str:
    """The one folder in front of all names that end as an item does; empty where there is none, or several."""
    ends: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in rows:
        for path, _ in spellings(matches.texts[row]):
            parts = path.split("/")
            for cut in range(1, len(parts)):
                ends[fold("/".join(parts[cut:]))].append((row, "/".join(parts[:cut])))
    fronts: dict[int, set[str]] = defaultdict(set)
    for item in items():
        own = path_of(item.path)
        for end in {fold(own), fold(strip_suffix(own))}:
            for row, front in ends.get(end, ()):
                fronts[row].add(front)
    common = set.intersection(*fronts.values()) if fronts else set()
    return common.pop() if len(common) == 1 else ""


def _match_ends(matches: NameMatches, rows: Sequence[int], items: Items) -> None:
    """Match rows whose name is the end of a path: the name of the file, and perhaps of some of its folders."""
    paths: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        for path, _ in spellings(matches.texts[row]):
            paths[fold(path)].append(row)
    for position, item in enumerate(items()):
        own = fold(path_of(item.path))
        starts = [match.end() for match in re.finditer("/", own)]
        for end in chain.from_iterable((own[start:], strip_suffix(own[start:])) for start in starts):
            for row in paths.get(end, ()):
                matches.add(row, Way.END, position, item)


def spellings(name: str) -> Iterator[tuple[str, bool]]:
    """The path that a name is (False), and the path that it is in URL encoding (True), where that is another."""
    path = path_of(name)
    if path:
        yield path, False
    if "%" in name and (other := path_of(unquote(name))) != path:
        yield other, True


def path_of(name: str) -> str:
    """A path with single slashes between its parts, without blanks at the ends of a part."""
    parts = map(strip_blanks, _LOCAL_URI.sub("/", strip_blanks(name)).replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", "."))


def _strip_front(path: str, fronts: Iterable[str]) -> str:
    """A path without the first of these folders that it begins with."""
    folded = fold(path)
    for front in fronts:
        if folded.startswith(fold(front) + "/"):
            return "/".join(path.split("/")[len(front.split("/")) :])
    return path


def strip_suffix(path: str) -> str:
    """A path without the suffix of the file."""
    return path[: len(path) - len(PurePosixPath(path).suffix)]


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """A text without differences of Unicode form and letter case."""
    return _form(_form(text).casefold())


def _file_name(path: str) -> str:
    """The file name of an item whose path is in URL encoding; empty for other items."""
    if "%" not in path:
        return ""
    name = decoded(unquote_to_bytes(path))
    return "" if name == path else name
