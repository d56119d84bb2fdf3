"""Which image each row of a label file names.

A name is an image's ``image_id``, or the same place written in another way. The loosest way that is needed is said;
a name that fits several images equally well is joined to none of them.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import PurePosixPath
from urllib.parse import unquote, unquote_to_bytes

from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.data.local_tree import decoded
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.reader import LabelFile, LabelRow, stripped


class Way(IntEnum):
    """How a name leads to an image, the closest first."""

    EXACT = 0
    FILE_NAME = 1  # the image_id is the file's name in URL encoding
    PATH = 2
    UNICODE = 3
    CASE = 4
    NO_SUFFIX = 5
    URL = 6


_SAID = {
    Way.FILE_NAME: "by the name of the file",
    Way.PATH: "by another spelling of the path",
    Way.UNICODE: "by another Unicode form",
    Way.CASE: "by another letter case",
    Way.NO_SUFFIX: "without the suffix",
    Way.URL: "in URL encoding",
}
_LOCAL_URI = re.compile(r"file:/+(localhost/+)?", re.IGNORECASE)


@dataclass
class Join:
    """The rows that name an image.

    Args:
        rows: what is known of each image, by image_id; rows of the same image are one.
        ways: how many images were found in each way.
        folder: all names have a folder in front of them that is not known as the source's, and is taken for it.
        absent: how many different names with a label name no image.
        ambiguous: lines whose names fit several images.
    """

    rows: dict[str, LabelRow] = field(default_factory=dict)
    ways: Counter[Way] = field(default_factory=Counter)
    folder: bool = False
    absent: int = 0
    ambiguous: list[int] = field(default_factory=list)

    def log(self, images: Collection[str] | None = None) -> None:
        """Log how many rows were joined, and how; counts only.

        Args:
            images: ``image_id`` of those that are used, where that are not all.
        """
        loosely = {_SAID[way]: count for way, count in sorted(self.ways.items()) if way != Way.EXACT}
        used = self.rows if images is None else self.rows.keys() & set(images)
        labelled = sum(self.rows[image].label is not None for image in used)
        without = {} if images is None else {"images_without_label": len(images) - labelled}
        event("labels joined", images=len(used), **without)
        if loosely:
            log.info("labels joined loosely: %s", ", ".join(f"{count} {way}" for way, count in loosely.items()))
        if self.folder:
            log.warning("all names have the same other folder in front of them; check that they are of these images")
        if self.absent:
            log.warning("%d labels name no image that is there and are left out", self.absent)
        if self.ambiguous:
            log.warning(
                "%d labels fit several images and are left out, the first in line %d; write the image's whole name",
                len(self.ambiguous),
                self.ambiguous[0],
            )


def join_labels(labels: LabelFile, images: Callable[[], Iterable[str]], folders: Sequence[str] = ()) -> Join:
    """Find the image that each row names.

    Where the file has both columns, ``file`` names the images, unless ``image_id`` names more of them; a row that is
    empty in the one goes by the other.

    Args:
        labels: the label file.
        images: the ``image_id`` of every image; called once or several times, so that not all need to be in memory.
        folders: paths and URIs of the source that may stand in front of a name.

    Raises:
        UsageError: rows give one image two labels, patients or sites.
    """
    columns = [column for column in ("file", "image_id") if column in labels.columns]
    joins = [_found(labels, first, images, folders) for first in columns]
    return _merged(labels, max(joins, key=lambda found: found.joined))  # the first of equals


@dataclass
class _Found:
    """Of each row (by its place) the way in which it names images, and those images; ``folder`` as in ``Join``."""

    names: list[str | None]
    images: dict[int, tuple[Way, set[str]]] = field(default_factory=dict)
    folder: bool = False

    @property
    def joined(self) -> int:
        return sum(len(images) == 1 for _, images in self.images.values())

    def add(self, row: int, way: Way, image: str) -> None:
        best, images = self.images.get(row, (way, set()))
        if way < best:
            self.images[row] = way, {image}
        elif way == best:
            images.add(image)
            self.images[row] = way, images


def _found(labels: LabelFile, first: str, images: Callable[[], Iterable[str]], folders: Sequence[str]) -> _Found:
    second = "image_id" if first == "file" else "file"
    found = _Found([getattr(row, first) or getattr(row, second) for row in labels.rows])
    by_name: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(found.names):
        if name is not None:
            by_name[name].append(row)
    for image in images():
        for way, name in ((Way.EXACT, image), (Way.FILE_NAME, _file_name(image))):
            for row in by_name.get(name, ()) if name else ():
                found.add(row, way, image)
    left = [row for row, name in enumerate(found.names) if name is not None and row not in found.images]
    if left:
        fronts = sorted({_path(folder) for folder in folders if _path(folder)}, key=len, reverse=True)
        _find_loosely(found, left, images, fronts)
        if not found.images and (front := _common_folder(found, left, images)):
            found.folder = not any(f"/{source}".endswith(f"/{front}") for source in fronts)
            _find_loosely(found, left, images, [front])
    return found


def _find_loosely(found: _Found, rows: Sequence[int], images: Callable[[], Iterable[str]], fronts: list[str]) -> None:
    paths: dict[str, list[tuple[int, str, bool]]] = defaultdict(list)
    for row in rows:
        for path, encoded in _spellings(str(found.names[row])):
            path = _without(path, fronts)
            paths[_fold(path)].append((row, path, encoded))
    for image in images():
        for spelling in filter(None, (image, _file_name(image))):
            own = _path(spelling)
            for row, path, encoded in paths.get(_fold(own), ()):
                found.add(row, Way.URL if encoded else _way(own, path), image)
            for row, _, encoded in paths.get(_fold(_without_suffix(own)), ()) if _without_suffix(own) != own else ():
                found.add(row, Way.URL if encoded else Way.NO_SUFFIX, image)


def _way(own: str, path: str) -> Way:
    if own == path:
        return Way.PATH
    return Way.UNICODE if _form(own) == _form(path) else Way.CASE


def _common_folder(found: _Found, rows: Sequence[int], images: Callable[[], Iterable[str]]) -> str:
    """The one folder in front of all names whose end is that of an image; empty where there is none, or several."""
    ends: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in rows:
        for path, _ in _spellings(str(found.names[row])):
            parts = path.split("/")
            for cut in range(1, len(parts)):
                ends[_fold("/".join(parts[cut:]))].append((row, "/".join(parts[:cut])))
    fronts: dict[int, set[str]] = defaultdict(set)
    for image in images():
        own = _path(image)
        for end in {_fold(own), _fold(_without_suffix(own))}:
            for row, front in ends.get(end, ()):
                fronts[row].add(front)
    common = set.intersection(*fronts.values()) if fronts else set()
    return common.pop() if len(common) == 1 else ""


def _merged(labels: LabelFile, found: _Found) -> Join:
    join = Join(folder=found.folder)
    of_image: dict[str, list[int]] = defaultdict(list)
    ways: dict[str, Way] = {}
    placed = set()
    for row, (way, images) in sorted(found.images.items()):
        placed.add(found.names[row])
        if len(images) > 1:
            join.ambiguous.append(labels.rows[row].line)
            continue
        image = next(iter(images))
        of_image[image].append(row)
        ways[image] = min(way, ways.get(image, way))
    for image, rows in of_image.items():
        join.rows[image] = _one(labels, image, [labels.rows[row] for row in rows])
    join.ways = Counter(ways.values())
    named = {name for name, row in zip(found.names, labels.rows, strict=True) if row.label is not None}
    join.absent = len(named - placed - {None})
    return join


def _one(labels: LabelFile, image: str, rows: Sequence[LabelRow]) -> LabelRow:
    """What several rows say of one image."""
    known = {}
    for column in ("label", "patient_id", "site"):
        said = {getattr(row, column): row.line for row in reversed(rows) if getattr(row, column) is not None}
        if len(said) > 1:
            first, other = sorted(said.values())[:2]
            thing = {"label": "labels", "patient_id": "patients", "site": "sites"}[column]
            raise UsageError(f"{labels.uri}: lines {first} and {other} give two {thing} to {image}; keep one of them")
        known[column] = next(iter(said), None)
    return rows[0]._replace(label=known["label"], patient_id=known["patient_id"], site=known["site"])


def _spellings(name: str) -> Iterator[tuple[str, bool]]:
    """The path that a name writes, and what it is where it is in URL encoding (True)."""
    path = _path(name)
    if path:
        yield path, False
    if "%" in name and (other := _path(unquote(name))) != path:
        yield other, True


def _path(name: str) -> str:
    """A path with single slashes between its parts, without blanks at the ends of a part."""
    parts = map(stripped, _LOCAL_URI.sub("/", stripped(name)).replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", "."))


def _without(path: str, fronts: Iterable[str]) -> str:
    folded = _fold(path)
    for front in fronts:
        if folded.startswith(_fold(front) + "/"):
            return "/".join(path.split("/")[len(front.split("/")) :])
    return path


def _without_suffix(path: str) -> str:
    return path[: len(path) - len(PurePosixPath(path).suffix)]


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _fold(text: str) -> str:
    return _form(_form(text).casefold())


def _file_name(image: str) -> str:
    """The name of the file whose image_id is in URL encoding; empty for other images."""
    if "%" not in image:
        return ""
    name = decoded(unquote_to_bytes(image))
    return "" if name == image else name
