"""Joins label files with the items of an archive: by the name of the file, or by an id of its header.

A row goes by the most specific key that it has: the name of the file, then the UIDs of the instance, the series and the
study, then the accession number. ``patient_id`` is a key only in a file without any other. Of several files, the first
that gives an image a value counts.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.ids import KEYS, IdMatches, Key, match_ids, match_item_names
from medfocus.pipeline.labels.items import Item, ItemNames, Items, Pseudonym, keep_text
from medfocus.pipeline.labels.names import WAY_TEXTS, NameMatches, Way, match_names
from medfocus.pipeline.labels.near_misses import Miss, find_near_misses
from medfocus.pipeline.labels.reader import LabelFile, LabelRow
from medfocus.pipeline.labels.report import FileReport, LabelReport

# Results of merged rows that are kept at hand: the images of a study mostly follow each other.
_MERGED = 4096
_NAME_COLUMNS = ("file", "image_id")
_THINGS = {"label": "labels", "patient_id": "patients", "site": "sites"}


class Values(NamedTuple):
    """What label files say of an image; None where they say nothing.

    Args:
        label: its class.
        patient_id: pseudonym of its patient.
        site: where it is from.
    """

    label: str | None = None
    patient_id: str | None = None
    site: str | None = None


@dataclass
class Join:
    """What label files say of the items of an archive.

    Args:
        index: int32 [N], index into ``values`` for each item, in the order of the items.
        values: the different values.
        report: counts and lines.
    """

    index: np.ndarray
    values: Sequence[Values]
    report: LabelReport

    def of(self, items: Iterable[Item]) -> Iterator[tuple[Item, Values]]:
        """Each item with what the files say of it; the patient of an item's header comes before that of a file."""
        for item, place in zip(items, self.index, strict=True):
            values = self.values[place]
            yield item, values if item.patient_id is None else values._replace(patient_id=item.patient_id)


def join_labels(
    files: Sequence[LabelFile],
    items: Items,
    folders: Sequence[str] = (),
    pseudonym: Pseudonym = keep_text,
    item_names: ItemNames | None = None,
) -> Join:
    """Find what label files say of each item.

    Args:
        files: the label files; of two that give an image a value, the first counts.
        items: gives every item, in the same order at each call.
        folders: paths and URIs of the source, which may stand in front of a name.
        pseudonym: gives the pseudonym of an id; patients of the files are pseudonyms in the result.
        item_names: gives the names of an item by its path, where items have names in place of paths.

    Raises:
        UsageError: rows of one file give one image two labels, patients or sites.
    """
    count = sum(1 for _ in items())
    joins = [_join_file(file, items, count, folders, pseudonym, item_names) for file in files]
    report = LabelReport([join.report for join in joins], images=count)
    named = np.zeros(count, bool)
    for join in joins:
        named[np.frombuffer(join.positions, np.int64)] = True
    report.joined = int(named.sum())
    values, index = _unite(joins, count, report)
    result = Join(index, values, report)
    _count(result, items)
    return result


def check_joined(join: Join, files: Sequence[LabelFile], place: str) -> None:
    """Check that each label file names images.

    Args:
        join: the join of the files.
        files: the files.
        place: URI of the archive, for the message.

    Raises:
        UsageError: a file names no image.
    """
    for file, report in zip(files, join.report.files, strict=True):
        if report.images:
            continue
        hint = "".join(f"; {kind.value}" for kind in list(report.near)[:1])
        column = next(column for column in file.columns if column != "label")
        raise UsageError(
            f"{file.uri}: names no image below {place} (read as {file.format}){hint}; write the path of each image"
            f" below SOURCE, or its ids, into its column {column}"
        )


@dataclass
class _FileJoin:
    """The rows of one label file that name items.

    Args:
        report: counts and lines.
        positions: position of an item, for each pair of an item and a row that names it.
        rows: index of the row, for each pair.
        ranks: how the row names the item, for each pair; the closest has the lowest.
        values: the different values of items; the first says nothing.
        index: int32 [N], index into ``values`` for each item.
    """

    report: FileReport
    positions: array = field(default_factory=lambda: array("q"))
    rows: array = field(default_factory=lambda: array("q"))
    ranks: array = field(default_factory=lambda: array("q"))
    values: list[Values] = field(default_factory=lambda: [Values()])
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


def _join_file(
    labels: LabelFile,
    items: Items,
    count: int,
    folders: Sequence[str],
    pseudonym: Pseudonym,
    item_names: ItemNames | None,
) -> _FileJoin:
    """Match the rows of a label file with items, key by key, and merge the rows of each item."""
    join = _FileJoin(FileReport(labels.uri, len(labels.rows)))
    misses: dict[int, Miss] = {}
    left = set(range(len(labels.rows)))
    keys = _keys(labels)
    for number, key in enumerate(keys):
        if key is None:
            matches = _match_names(labels, items, folders, item_names)
        else:
            texts = {row: getattr(labels.rows[row], key.column) for row in sorted(left)}
            texts = {row: text for row, text in texts.items() if text is not None}
            matches = match_ids(texts, key, items, pseudonym)
        misses |= {
            row: Miss(labels.rows[row].line, key, text)
            for row, text in matches.texts.items()
            if matches.is_missing(row)
        }
        if not matches.found and not matches.ambiguous and number < len(keys) - 1:
            if matches.texts:
                join.report.unused_columns.append("file" if key is None else key.column)
            continue
        _add(join, key, matches, labels)
        left -= matches.texts.keys()
        misses = {row: miss for row, miss in misses.items() if row not in matches.texts or matches.is_missing(row)}
    _report_misses(join.report, labels, misses, items, pseudonym)
    _merge(join, labels, count, pseudonym)
    if any(values.patient_id for values in join.values):
        _compare_patients(join, labels, items)
    return join


def _keys(labels: LabelFile) -> list[Key | None]:
    """The keys of a label file, the most specific first; None is the name of the file."""
    keys: list[Key | None] = [None] if set(_NAME_COLUMNS) & set(labels.columns) else []
    keys += [key for key in KEYS if key.column in labels.columns]
    return [key for key in keys if key is None or key.column != "patient_id" or len(keys) == 1]


def _match_names(
    labels: LabelFile, items: Items, folders: Sequence[str], item_names: ItemNames | None
) -> NameMatches | IdMatches:
    """Match rows by names of files.

    Where the file has both columns, ``file`` names the images, unless ``image_id`` names more of them. A row that is
    empty in one column goes by the other.
    """
    candidates: list[NameMatches | IdMatches] = []
    for first in (column for column in _NAME_COLUMNS if column in labels.columns):
        second = "image_id" if first == "file" else "file"
        texts = enumerate(getattr(row, first) or getattr(row, second) for row in labels.rows)
        names = {row: text for row, text in texts if text is not None}
        candidates.append(match_names(names, items, folders))
        if item_names:
            candidates.append(match_item_names(names, item_names, items))
    return max(candidates, key=lambda matches: matches.found)  # the first of equals


def _add(join: _FileJoin, key: Key | None, matches: NameMatches | IdMatches, labels: LabelFile) -> None:
    """Add the matches of a key to the join of a file."""
    offset = 0 if key is None else len(Way) + KEYS.index(key)
    for position, row, way in matches.pairs():
        join.positions.append(position)
        join.rows.append(row)
        join.ranks.append(way + offset)
    join.report.ambiguous += [labels.rows[row].line for row in matches.ambiguous]
    if isinstance(matches, NameMatches):
        join.report.folder = matches.folder


def _how(rank: int) -> tuple[str, str]:
    """The column and the text of the way in which a row names an item."""
    return ("file", WAY_TEXTS.get(Way(rank), "")) if rank < len(Way) else (KEYS[rank - len(Way)].column, "")


def _report_misses(
    report: FileReport, labels: LabelFile, misses: dict[int, Miss], items: Items, pseudonym: Pseudonym
) -> None:
    labelled = [miss for row, miss in sorted(misses.items()) if labels.rows[row].label is not None]
    report.absent = len({(miss.key and miss.key.column, miss.text) for miss in labelled})
    report.absent_lines = [miss.line for miss in labelled]
    if labelled:
        report.near = find_near_misses(labelled, items, pseudonym)


def _merge(join: _FileJoin, labels: LabelFile, count: int, pseudonym: Pseudonym) -> None:
    """Merge the rows of each item.

    Raises:
        UsageError: the rows contradict each other.
    """
    join.index = np.zeros(count, np.int32)
    places = {Values(): 0}
    ranks: Counter[int] = Counter()

    @lru_cache(_MERGED)
    def place_of(rows: tuple[int, ...]) -> int:
        return places.setdefault(_merge_rows(labels, [labels.rows[row] for row in rows], pseudonym), len(places))

    positions = np.frombuffer(join.positions, np.int64)
    order = np.lexsort((np.frombuffer(join.rows, np.int64), positions))
    pairs = ((join.positions[pair], join.rows[pair], join.ranks[pair]) for pair in order)
    for position, group in groupby(pairs, key=itemgetter(0)):
        members = list(group)
        ranks[min(rank for _, _, rank in members)] += 1
        join.index[position] = place_of(tuple(row for _, row, _ in members))
    join.values = list(places)
    for rank, images in sorted(ranks.items()):
        join.report.images[_how(rank)] += images


def _merge_rows(labels: LabelFile, rows: Sequence[LabelRow], pseudonym: Pseudonym) -> Values:
    """The values of all rows of an item.

    Raises:
        UsageError: the rows contradict each other.
    """
    merged: dict[str, str | None] = {}
    for column, things in _THINGS.items():
        lines = {getattr(row, column): row.line for row in reversed(rows) if getattr(row, column) is not None}
        if len(lines) > 1:
            first, other = sorted(lines.values())[:2]
            raise UsageError(f"{labels.uri}: lines {first} and {other} give one image two {things}; keep one of them")
        merged[column] = next(iter(lines), None)
    if (patient := merged["patient_id"]) is not None:
        merged["patient_id"] = pseudonym("patient", patient)
    return Values(**merged)


def _compare_patients(join: _FileJoin, labels: LabelFile, items: Items) -> None:
    """Report the lines that give an item another patient than its header."""
    wrong = np.zeros(len(join.index), bool)
    for position, (item, place) in enumerate(zip(items(), join.index, strict=True)):
        patient = join.values[place].patient_id
        wrong[position] = None not in (patient, item.patient_id) and patient != item.patient_id
    rows = {row for position, row in zip(join.positions, join.rows, strict=True) if wrong[position]}
    join.report.other_patients = sorted(labels.rows[row].line for row in rows)


def _unite(joins: Sequence[_FileJoin], count: int, report: LabelReport) -> tuple[list[Values], np.ndarray]:
    """The values of all files, of which the first counts."""
    if not joins:
        return [Values()], np.zeros(count, np.int32)
    if len(joins) == 1:
        return joins[0].values, joins[0].index
    combinations, index, sizes = np.unique(
        np.stack([join.index for join in joins], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    values = []
    for combination, size in zip(combinations, sizes, strict=True):
        told = [join.values[place] for join, place in zip(joins, combination, strict=True)]
        columns = [[value for value in column if value is not None] for column in zip(*told, strict=True)]
        values.append(Values(*(column[0] if column else None for column in columns)))
        report.overridden += int(size) * any(len(column) > 1 for column in columns)
        report.conflicts += int(size) * any(len(set(column)) > 1 for column in columns)
    return values, index.reshape(-1).astype(np.int32)


def _count(join: Join, items: Items) -> None:
    """Count images, classes, patients and sites."""
    report = join.report
    patients: set[str] = set()
    for _, values in join.of(items()):
        if values.label is None:
            continue
        report.classes[values.label] += 1
        report.sites.update([values.site] if values.site is not None else [])
        if values.patient_id is None:
            report.without_patient += 1
        else:
            patients.add(values.patient_id)
    report.patients = len(patients)
