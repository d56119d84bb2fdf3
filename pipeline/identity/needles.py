"""Needles: names, ids and dates that must not be found, in every form in which they could hide."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import date
from itertools import permutations
from pathlib import Path
from urllib.parse import quote

from pydicom.charset import python_encoding

from medfocus.pipeline.errors import UsageError

# Words that head a column or name a kind in a table of needles, and are none themselves.
_HEADS = {
    "needle",
    "value",
    "text",
    "kind",
    "type",
    "attribute",
    "keyword",
    "name",
    "id",
    "identifier",
    "date",
    "patient",
    "patient_id",
    "patient_name",
    "birth",
    "birthday",
    "birth_date",
    "study_date",
    "accession",
    "uid",
    "path",
    "file",
    "null",
    "none",
    "nan",
}
_SEPARATORS = ("^", " ", ", ", ",", "_", "-", ".", "")
# Parts of a name: given and family names, prefixes, and the representations of PS3.5 6.2.1.
_BETWEEN_PARTS = re.compile(r"[\^=,;_\s]+")
_DATE_FORMS = ("%Y%m%d", "%Y-%m-%d", "%Y.%m.%d", "%Y/%m/%d", "%Y_%m_%d", "%d.%m.%Y", "%d-%m-%Y", "%d/%m/%Y", "%d%m%Y",
               "%m/%d/%Y", "%m-%d-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")  # fmt: skip
_YEAR_FIRST = re.compile(r"(\d{4})([-./ _]?)(\d{1,2})\2(\d{1,2})")
_YEAR_LAST = re.compile(r"(\d{1,2})([-./ _])(\d{1,2})\2(\d{4})")
# Most parts of a name whose order is varied: family and given name.
_VARIED_PARTS = 2
# Escape sequences of ISO 2022 at the ends of a text.
_ESCAPES = re.compile(rb"^(?:\x1b\$?[(),.-]?[@-~])+|(?:\x1b\$?[(),.-]?[@-~])+$")


def read_needles(file: Path) -> list[str]:
    """Read the needles of a file.

    Args:
        file: text with a needle on each line; a name that ends in ``.csv`` or ``.tsv`` means a table whose cells are
            needles. UTF-8, UTF-16 with a byte order mark, or Windows-1252. Heads of columns such as ``name`` are no
            needles.

    Returns:
        The distinct needles, in the order of the file.

    Raises:
        UsageError: the file cannot be read, or has none.
    """
    try:
        text = _decode(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); correct --planted") from error
    cells = _cells(text) if file.suffix.lower() in (".csv", ".tsv") else text.splitlines()
    needles = dict.fromkeys(cell.strip() for cell in cells)
    found = [needle for needle in needles if needle and not _is_head(needle)]
    if not found:
        raise UsageError(f"{file}: has no needle; write a name, an id or a date on each line")
    return found


def texts_of(needle: str) -> set[str]:
    """The texts in which a needle could be written: dates with other separators and orders, names in other orders."""
    texts = {needle}
    for day in _dates(needle):
        texts |= {day.strftime(form) for form in _DATE_FORMS}
    parts = [part for part in _BETWEEN_PARTS.split(needle) if part]
    if not _has_digit(needle) and len(parts) > 1:
        orders = permutations(parts) if len(parts) == _VARIED_PARTS else [parts]
        texts |= {separator.join(order) for order in orders for separator in _SEPARATORS}
        texts |= {part for part in needle.split("=") if part}
    return texts


def encodings_of(text: str) -> set[bytes]:
    """The bytes of a text in UTF-8, UTF-16, the character sets of DICOM, and as JSON, Python and URLs escape it.

    Letters that are no ASCII are taken in small and in capital letters too. The case of ASCII letters is left to the
    search.
    """
    spellings = {text} if text.isascii() else {text, text.lower(), text.upper(), text.title(), text.casefold()}
    forms: set[bytes] = set()
    for spelling in spellings:
        forms |= {spelling.encode("utf-8"), spelling.encode("utf-16-le"), spelling.encode("utf-16-be")}
        if not spelling.isascii():
            forms |= set(_in_character_sets(spelling))
            forms |= {spelling.encode("ascii", "backslashreplace"), json.dumps(spelling)[1:-1].encode()}
        forms.add(quote(spelling).encode())
    return forms - {b""}


def _in_character_sets(text: str) -> Iterator[bytes]:
    """A text in each character set of DICOM that has its letters, without escape sequences at the ends."""
    for codec in {*python_encoding.values(), "cp1252"}:
        try:
            yield _ESCAPES.sub(b"", text.encode(codec))
        except UnicodeEncodeError:
            continue


def _dates(text: str) -> Iterator[date]:
    """The days that a text can mean."""
    if found := _YEAR_FIRST.fullmatch(text):
        orders = [(found[1], found[3], found[4])]
    elif found := _YEAR_LAST.fullmatch(text):
        orders = [(found[4], found[3], found[1]), (found[4], found[1], found[3])]
    else:
        return
    for year, month, day in orders:
        if 1850 <= int(year) < 2200 and 1 <= int(month) <= 12 and 1 <= int(day) <= 31:
            try:
                yield date(int(year), int(month), int(day))
            except ValueError:  # no such day
                continue


def _has_digit(text: str) -> bool:
    return any(letter.isdigit() for letter in text)


def _is_head(text: str) -> bool:
    """Whether a text is the head of a column, as ``Patient ID`` or ``names``."""
    word = "_".join(text.casefold().split())
    return word in _HEADS or word.removesuffix("s") in _HEADS


def _cells(text: str) -> Iterator[str]:
    """The cells of a table whose separator is the most frequent one of its first line."""
    first = text.partition("\n")[0]
    separator = max(",;\t|", key=first.count)
    for row in csv.reader(io.StringIO(text), delimiter=separator):
        yield from row


def _decode(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")
