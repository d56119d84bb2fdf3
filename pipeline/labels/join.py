"""Finds the image that each row of a label file names.

A name is the ``image_id`` of an image, or the same path in another spelling. The closest spelling counts, and the log
says which were needed. A name that fits several images equally well is joined to none of them.
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
from medfocus.pipeline.labels.reader import LabelFile, LabelRow, strip_blanks


class Way(IntEnum):
    """How the spelling of a name differs from the image, the closest first."""

    EXACT = 0
    FILE_NAME = 1  # the image_id is the file's name in URL encoding
    PATH = 2
    UNICODE = 3
    CASE = 4
    NO_SUFFIX = 5
    URL = 6


_WAY_TEXTS = {
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
        rows: label, patient and site of each image, by image_id; rows of the same image are merged.
        ways: number of images by the way in which they were found.
        folder: whether all names have the same folder in front that is not in the path of the source; it is taken for
            the source.
        absent: number of different names with a label that name no image.
        ambiguous: lines whose names fit several images.
    """

    rows: dict[str, LabelRow] = field(default_factory=dict)
    ways: Counter[Way] = field(default_factory=Counter)
    folder: bool = False
    absent: int = 0
    ambiguous: list[int] = field(default_factory=list)

    def log(self, images: Collection[str] | None = None) -> None:
        """Log counts of the rows that were joined, and of the ways.

        Args:
            images: ``image_id`` of the images that are used; None where all are.
        """
        loosely = {_WAY_TEXTS[way]: count for way, count in sorted(self.ways.items()) if way != Way.EXACT}
        used = self.rows if images is None else self.rows.keys() & set(images)
        labelled = sum(self.rows[image].label is not None for image in used)
        unlabelled = {} if images is None else {"images_without_label": len(images) - labelled}
        event("labels joined", images=len(used), **unlabelled)
        if loosely:
            log.info("labels joined loosely: %s", ", ".join(f"{count} {way}" for way, count in loosely.items()))
        if self.folder:
            log.warning("all names have the same other folder in front of them; check that they are of these images")
        if self.absent:
            log.warning("%d labels name no image of the source and are left out", self.absent)
        if self.ambiguous:
            log.warning(
                "%d labels fit several images and are left out, the first in line %d; write the image's whole name",
                len(self.ambiguous),
                self.ambiguous[0],
            )


def join_labels(labels: LabelFile, images: Callable[[], Iterable[str]], folders: Sequence[str] = ()) -> Join:
    """Find the image that each row names.

    Where the file has both columns, ``file`` names the images, unless ``image_id`` names more of them. A row that is
    empty in one column goes by the other.

    Args:
        labels: the label file.
        images: gives the ``image_id`` of every image. It may be called several times, so that the images need not all
            be in memory.
        folders: paths and URIs of the source, which may stand in front of a name.

    Raises:
        UsageError: rows give one image two labels, patients or sites.
    """
    columns = [column for column in ("file", "image_id") if column in labels.columns]
    candidates = [_match_rows(labels, first, images, folders) for first in columns]
    return _merge(labels, max(candidates, key=lambda matches: matches.joined))  # the first of equals


@dataclass
class _Matches:
    """The images that rows name.

    Args:
        names: name in each row; None where there is none.
        images: by the index of a row, the closest way in which it names images, and those images.
        folder: as in ``Join``.
    """

    names: list[str | None]
    images: dict[int, tuple[Way, set[str]]] = field(default_factory=dict)
    folder: bool = False

    @property
    def joined(self) -> int:
        """Number of rows that name one image."""
        return sum(len(images) == 1 for _, images in self.images.values())

    def add(self, row: int, way: Way, image: str) -> None:
        """Add an image that a row names; a closer way replaces the images of a looser one."""
        best, images = self.images.get(row, (way, set()))
        if way < best:
            self.images[row] = way, {image}
        elif way == best:
            images.add(image)
            self.images[row] = way, images


def _match_rows(labels: LabelFile, first: str, images: Callable[[], Iterable[str]], folders: Sequence[str]) -> _Matches:
    """Match rows with images by their exact names, then the rows that are left by other spellings.

    Args:
        labels: the label file.
        first: the column that names the images; an empty row goes by the other column.
        images: as in ``join_labels``.
        folders: as in ``join_labels``.
    """
    second = "image_id" if first == "file" else "file"
    matches = _Matches([getattr(row, first) or getattr(row, second) for row in labels.rows])
    by_name: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(matches.names):
        if name is not None:
            by_name[name].append(row)
    for image in images():
        for way, name in ((Way.EXACT, image), (Way.FILE_NAME, _file_name(image))):
            for row in by_name.get(name, ()) if name else ():
                matches.add(row, way, image)
    left = [row for row, name in enumerate(matches.names) if name is not None and row not in matches.images]
    if left:
        fronts = sorted({_path(folder) for folder in folders if _path(folder)}, key=len, reverse=True)
        _match_loosely(matches, left, images, fronts)
        if not matches.images and (front := _common_folder(matches, left, images)):
            matches.folder = not any(f"/{source}".endswith(f"/{front}") for source in fronts)
            _match_loosely(matches, left, images, [front])
    return matches


def _match_loosely(
    matches: _Matches, rows: Sequence[int], images: Callable[[], Iterable[str]], fronts: list[str]
) -> None:
    """Match rows by other spellings of their names.

    Args:
        matches: takes the images.
        rows: indices of the rows.
        images: as in ``join_labels``.
        fronts: folders that are removed from the front of a name.
    """
    paths: dict[str, list[tuple[int, str, bool]]] = defaultdict(list)
    for row in rows:
        for path, encoded in _spellings(str(matches.names[row])):
            path = _strip_front(path, fronts)
            paths[_fold(path)].append((row, path, encoded))
    for image in images():
        for spelling in filter(None, (image, _file_name(image))):
            own = _path(spelling)
            for row, path, encoded in paths.get(_fold(own), ()):
                matches.add(row, Way.URL if encoded else _way(own, path), image)
            bare = _strip_suffix(own)
            for row, _, encoded in paths.get(_fold(bare), ()) if bare != own else ():
                matches.add(row, Way.URL if encoded else Way.NO_SUFFIX, image)


def _way(own: str, path: str) -> Way:
    """How a path differs from that of the image, where both are equal but for their Unicode form and letter case."""
    if own == path:
        return Way.PATH
    return Way.UNICODE if _form(own) == _form(path) else Way.CASE


def _common_folder(matches: _Matches, rows: Sequence[int], images: Callable[[], Iterable[str]]) -> str:
    """The one folder in front of all names that end as an image does; empty where there is none, or several."""
    ends: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in rows:
        for path, _ in _spellings(str(matches.names[row])):
            parts = path.split("/")
            for cut in range(1, len(parts)):
                ends[_fold("/".join(parts[cut:]))].append((row, "/".join(parts[:cut])))
    fronts: dict[int, set[str]] = defaultdict(set)
    for image in images():
        own = _path(image)
        for end in {_fold(own), _fold(_strip_suffix(own))}:
            for row, front in ends.get(end, ()):
                fronts[row].add(front)
    common = set.intersection(*fronts.values()) if fronts else set()
    return common.pop() if len(common) == 1 else ""


def _merge(labels: LabelFile, matches: _Matches) -> Join:
    """Merge the rows of each image."""
    join = Join(folder=matches.folder)
    rows_by_image: dict[str, list[int]] = defaultdict(list)
    ways: dict[str, Way] = {}
    matched_names = set()
    for row, (way, images) in sorted(matches.images.items()):
        matched_names.add(matches.names[row])
        if len(images) > 1:
            join.ambiguous.append(labels.rows[row].line)
            continue
        image = next(iter(images))
        rows_by_image[image].append(row)
        ways[image] = min(way, ways.get(image, way))
    for image, rows in rows_by_image.items():
        join.rows[image] = _merge_rows(labels, image, [labels.rows[row] for row in rows])
    join.ways = Counter(ways.values())
    names = {name for name, row in zip(matches.names, labels.rows, strict=True) if row.label is not None}
    join.absent = len(names - matched_names - {None})
    return join


def _merge_rows(labels: LabelFile, image: str, rows: Sequence[LabelRow]) -> LabelRow:
    """One row with the values of all rows of an image.

    Raises:
        UsageError: the rows contradict each other.
    """
    merged = {}
    for column in ("label", "patient_id", "site"):
        lines = {getattr(row, column): row.line for row in reversed(rows) if getattr(row, column) is not None}
        if len(lines) > 1:
            first, other = sorted(lines.values())[:2]
            thing = {"label": "labels", "patient_id": "patients", "site": "sites"}[column]
            raise UsageError(f"{labels.uri}: lines {first} and {other} give two {thing} to {image}; keep one of them")
        merged[column] = next(iter(lines), None)
    return rows[0]._replace(label=merged["label"], patient_id=merged["patient_id"], site=merged["site"])


def _spellings(name: str) -> Iterator[tuple[str, bool]]:
    """The path that a name is (False), and the path that it is in URL encoding (True), where that is another."""
    path = _path(name)
    if path:
        yield path, False
    if "%" in name and (other := _path(unquote(name))) != path:
        yield other, True


def _path(name: str) -> str:
    """A path with single slashes between its parts, without blanks at the ends of a part."""
    parts = map(strip_blanks, _LOCAL_URI.sub("/", strip_blanks(name)).replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", "."))


def _strip_front(path: str, fronts: Iterable[str]) -> str:
    """A path without the first of these folders that it begins with."""
    folded = _fold(path)
    for front in fronts:
        if folded.startswith(_fold(front) + "/"):
            return "/".join(path.split("/")[len(front.split("/")) :])
    return path


def _strip_suffix(path: str) -> str:
    return path[: len(path) - len(PurePosixPath(path).suffix)]


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _fold(text: str) -> str:
    """A text without differences of Unicode form and letter case."""
    return _form(_form(text).casefold())


def _file_name(image: str) -> str:
    """The file name of an image whose image_id is in URL encoding; empty for other images."""
    if "%" not in image:
        return ""
    name = decoded(unquote_to_bytes(image))
    return "" if name == image else name
