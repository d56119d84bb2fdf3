"""The one reader of label files, for every command that takes labels: label, patient and site of each image.

``labels.tables`` reads the format, ``labels.join`` finds the image that each row names. docs/labels.md describes label
files.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations, groupby
from typing import Any, NamedTuple

from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.columns import COLUMNS, ID_COLUMNS, INVISIBLE, column_of, columns_of, places_of
from medfocus.pipeline.labels.tables import Table, read_table

# Characters without width. They are removed at the ends of a value, and inside a class as well; the two joiners stay
# inside a class, since some languages need them.
_JOINERS = "\u200c\u200d"
_INSIDE = re.compile(f"[{INVISIBLE}]")
_ENDS = re.compile(rf"^[\s{INVISIBLE}{_JOINERS}]+|[\s{INVISIBLE}{_JOINERS}]+$")
_BLANKS = re.compile(r"\s+")
_NONE = frozenset({"", "nan"})
# Texts for an unknown id; a class or a site may be called NA.
_NO_ID = frozenset({"na", "n/a", "<na>", "none", "null"})
_IDS = frozenset({*ID_COLUMNS, "patient_id"})
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_WHOLE_WITH_COMMA = re.compile(r"([+-]?\d+)(?:,0+)?")
# A larger number in floating point stands for several whole numbers; its text shows that it was rounded.
_LARGEST_WHOLE = 2**53
# Most classes in a line of the log, and most letters of each: a wrong column may hold anything.
_MOST_CLASSES, _MOST_LETTERS = 20, 40


class LabelRow(NamedTuple):
    """One row of a label file; empty values are None. ``file`` and ``image_id`` are as written in the file."""

    line: int
    file: str | None = None
    image_id: str | None = None
    label: str | None = None
    patient_id: str | None = None
    site: str | None = None
    sop_instance_uid: str | None = None
    series_instance_uid: str | None = None
    study_instance_uid: str | None = None
    accession_number: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """The content of a label file.

    Args:
        uri: URI of the file.
        digest: SHA-256 of its content.
        rows: rows that are not empty, in order.
        columns: the known columns of the file, in the order of ``COLUMNS``.
        format: format, encoding and separator, for a person.
        warnings: doubts about the reading.
        spellings: number of rows by spelling in the file and class, where the two differ.
    """

    uri: str
    digest: str
    rows: Sequence[LabelRow]
    columns: Sequence[str]
    format: str
    warnings: Sequence[str]
    spellings: Counter[tuple[str, str]]

    def log(self) -> None:
        """Log the format and the classes in one line, and each doubt in one more. No other value is logged."""
        classes = Counter(row.label for row in self.rows if row.label is not None)
        event(
            f"labels: {self.format}",
            rows=len(self.rows),
            columns=",".join(self.columns),
            classes=format_classes(classes),
        )
        if self.spellings and len(classes) <= _MOST_CLASSES:
            spellings = [
                f"{_cut(written)} as {_cut(read)} ({rows} rows)" for (written, read), rows in self.spellings.items()
            ]
            log.info("labels: other spellings of a class: %s", format_list(spellings))
        for warning in self.warnings:
            log.warning("labels: %s", warning)
        warn_of_like_classes(classes)


def read_labels(location: Location) -> LabelFile:
    """Read a label file: CSV in any dialect, Parquet, or Excel.

    The header names, in any letter case, ``label``, what the rows are about (``file``, ``image_id``, a UID,
    ``accession_number`` or ``patient_id``), and, where they are known, ``patient_id`` and ``site``. An empty value and
    ``nan`` mean that a value is not known.

    Args:
        location: the label file.

    Raises:
        UsageError: there is no such file, it cannot be read, or a column is missing or there twice.
    """
    if not location.exists() or location.is_folder():
        raise UsageError(f"{location.uri}: no such label file; correct --labels")
    content = location.read()
    table = read_table(content, location.uri, lambda header: len(set(columns_of(header))))
    places = places_of(table.header, location.uri)
    rows = list(_rows(table, places, location.uri))
    written = [row.label for row in rows]
    numbers = _decimal_comma(written, table)
    classes = {text: normal_form(numbers.get(text, text)) for text in set(written) if text is not None}
    return LabelFile(
        uri=location.uri,
        digest=hashlib.sha256(content).hexdigest(),
        rows=[row._replace(label=None if row.label is None else classes[row.label]) for row in rows],
        columns=[column for column in COLUMNS if column in places],
        format=table.format,
        warnings=[table.warning] if table.warning else [],
        spellings=Counter((text, classes[text]) for text in written if text is not None and text != classes[text]),
    )


def normal_form(text: str) -> str:
    """The normal form of a class, patient or site.

    It is in NFC, with single blanks, without blanks at the ends and without invisible characters. A whole number has no
    fraction.
    """
    text = unicodedata.normalize("NFC", _BLANKS.sub(" ", strip_blanks(_INSIDE.sub("", text))))
    number = _WHOLE.fullmatch(text)
    return number.group(1) if number else text


def strip_blanks(text: str) -> str:
    """A text without blanks and characters without width at its ends."""
    return _ENDS.sub("", text)


def likeness(name: str) -> str:
    """A key that is equal for classes that differ by letter case, width or an invisible character only."""
    return unicodedata.normalize("NFKC", re.sub(f"[{_JOINERS}]", "", name)).casefold()


def warn_of_like_classes(classes: Iterable[str]) -> None:
    """Warn of classes that are likely two spellings of one; they stay two."""
    for _, group in groupby(sorted(classes, key=lambda name: (likeness(name), name)), key=likeness):
        for one, other in combinations(group, 2):
            log.warning(
                "classes %s and %s look alike and stay two; write them alike if they are one", *quote_both(one, other)
            )


def quote_both(one: str, other: str) -> tuple[str, str]:
    """Two texts in quotation marks; where they differ by other letters than ASCII, with escapes that show these."""
    if all(letter.isascii() for letter in set(one) ^ set(other)):
        return repr(one), repr(other)
    return ascii(one), ascii(other)


def format_classes(classes: Counter[str]) -> str:
    """Classes with the number of their rows, for the log; where there are many, only the number of classes."""
    if len(classes) > _MOST_CLASSES:
        return f"{len(classes)} classes"
    return format_list([f"{_cut(name)} {rows}" for name, rows in sorted(classes.items())]) or "none"


def _cut(text: str) -> str:
    return repr(text[:_MOST_LETTERS])


def format_list(items: Sequence[str]) -> str:
    """The first items, and the number of the others."""
    more = len(items) - _MOST_CLASSES
    return ", ".join(items[:_MOST_CLASSES]) + (f" and {more} more" if more > 0 else "")


def _rows(table: Table, places: dict[str, int], uri: str) -> Iterator[LabelRow]:
    """The rows of a table that are not empty and do not repeat the header.

    Raises:
        UsageError: a row has more values than the header.
    """
    values: dict[tuple[str, str], str | None] = {}  # a cache: these columns have few different texts
    width = len(table.header)
    for line, cells in table.records:
        if any(map(_text, cells[width:])):
            raise UsageError(
                f"{uri}: line {line} has {len(cells)} values, the header has {width}; put a text that holds the"
                " separator into quotation marks"
            )
        row: dict[str, str | None] = {}
        for column in COLUMNS:
            place = places.get(column, len(cells))
            text = _text(cells[place]) if place < len(cells) else ""
            if column in ("file", "image_id"):
                row[column] = None if strip_blanks(text).casefold() in _NONE else text
            else:
                if column in ID_COLUMNS:
                    row[column] = _value(column, text)
                    continue
                if (column, text) not in values:
                    values[column, text] = _value(column, text)
                row[column] = values[column, text]
        repeats_header = all(column_of(row[column] or "") == column for column in places)
        if not repeats_header and any(value is not None for value in row.values()):
            yield LabelRow(line, **row)


def _value(column: str, text: str) -> str | None:
    """The value that a text of a column other than ``file`` means; a label stays as it is written."""
    bare = strip_blanks(text)
    if bare.casefold() in _NONE or (column in _IDS and bare.casefold() in _NO_ID):
        return None
    if column == "label":
        return text
    return bare if column.endswith("uid") else normal_form(text)


def _text(cell: Any) -> str:
    """A cell as the text that a CSV file would hold."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < _LARGEST_WHOLE:
        return str(int(cell))
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    return cell.isoformat() if isinstance(cell, date) else str(cell)


def _decimal_comma(written: Sequence[str | None], table: Table) -> dict[str, str]:
    """Labels such as ``1,0`` as numbers, where a comma does not separate and all labels are whole numbers."""
    texts = {text for text in written if text is not None}
    matches = {text: _WHOLE_WITH_COMMA.fullmatch(strip_blanks(text)) for text in texts}
    if table.separator in ("", ",") or not all(matches.values()):
        return {}
    return {text: match.group(1) for text, match in matches.items() if match}
