"""Reads tables in the formats of label files: CSV of any dialect, Parquet and Excel.

This module does not know what a cell means. An error names the line or the row, never its content, which may identify
a patient.
"""

import codecs
import csv
import io
import json
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.errors import UsageError

SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Excel names the separator in a first line of its own.
_SEPARATOR_LINE = re.compile(r'\ufeff*"?sep=(.)"?[,;\t|]*\s*', re.IGNORECASE)
# The csv module refuses a blank between a closing quotation mark and the separator.
_BLANK_AFTER_QUOTE = re.compile(r'" +(?=[,;\t|\r\n]|$)')
_UTF8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
# The text of a report may be longer than the csv module's own limit.
_LONGEST_CELL = min(sys.maxsize, 2**31 - 1)


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        header: names of the columns, as they are written.
        records: for each record, the number of its first line (in Parquet and Excel, of its row), from 1, and its
            cells; a record may be shorter than the header.
        format: format, encoding and separator, for a person.
        warning: a doubt about these; empty where there is none.
        separator: separator of the cells of a CSV file; empty in the other formats.
    """

    header: Sequence[str]
    records: Iterator[tuple[int, Sequence[Any]]]
    format: str
    warning: str = ""
    separator: str = ""


def read_table(content: bytes, uri: str, known: Callable[[Sequence[str]], int]) -> Table:
    """Read a table; its first bytes show the format.

    Args:
        content: content of the file.
        uri: URI of the file, for messages.
        known: counts the known columns of a header; of several separators, the one with most known columns is taken.

    Raises:
        UsageError: the file is of another format, broken, or not text. Errors in later lines of a CSV file are raised
            while the records are read.
    """
    if content.startswith(b"PAR1"):
        return _read_parquet(content, uri, known)
    if content.startswith(b"PK\x03\x04"):
        return _read_excel(content, uri, known)
    for magic, name in ((b"\xd0\xcf\x11\xe0", "an old Excel file (.xls)"), (b"\x1f\x8b", "compressed")):
        if content.startswith(magic):
            raise UsageError(f"{uri}: is {name}; save it as CSV")
    return _read_csv(content, uri, known)


def _read_csv(content: bytes, uri: str, known: Callable[[Sequence[str]], int]) -> Table:
    """Read CSV text in any encoding, with any separator."""
    encoding, warning = _encoding(content, uri)

    def lines() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(content), encoding, newline="")

    named = _SEPARATOR_LINE.fullmatch(lines().readline())
    candidates = (named.group(1),) if named else SEPARATORS

    def records(separator: str) -> Iterator[tuple[int, list[str]]]:
        stream = lines()
        if named:
            stream.readline()
        return _records(stream, separator, uri, skipped=1 if named else 0)

    headers: dict[str, Sequence[str]] = {}
    failure: UsageError | None = None
    for separator in candidates:
        try:
            headers[separator] = next(records(separator), (0, []))[1]
        except UsageError as error:  # quotation marks that do not fit this separator
            failure = error
    if not headers and failure is not None:
        raise failure
    separator = max(headers, key=lambda candidate: known(headers[candidate]))  # the first of equals
    rest = records(separator)
    next(rest, None)
    name = _SEPARATOR_NAMES.get(separator, repr(separator))
    return Table(headers[separator], rest, f"CSV, {encoding}, separated by {name}", warning, separator)


def _records(stream: io.TextIOWrapper, separator: str, uri: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the number of its first line. Lines end in LF, CRLF or CR."""
    csv.field_size_limit(_LONGEST_CELL)
    # A byte order mark may begin any line where several files were joined.
    lines = (_BLANK_AFTER_QUOTE.sub('"', line.lstrip("\ufeff")) for line in stream)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + skipped + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UsageError(
                f"{uri}: line {line}: a quotation mark inside a quoted text is not doubled, or the text has no closing"
                " one; save the table as CSV again"
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _encoding(content: bytes, uri: str) -> tuple[str, str]:
    """Encoding of a text, and a warning where it is a guess.

    A byte order mark and the position of zero bytes show UTF-16 and UTF-32. Any text that is not UTF-8 is read in the
    8-bit encoding that spreadsheets write by default: that of Macintosh where lines end in CR, else that of Windows.

    Raises:
        UsageError: the content is in no encoding, or is not text.
    """
    # json.loads detects the encoding of bytes by this function, from the first four.
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            line = _line(content, error.start, encoding)
            raise UsageError(f"{uri}: line {line} is not {encoding}; save the file as UTF-8") from error
        return _eight_bit(content, error.start, uri)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(f"{uri}: line {line} holds a zero byte, so it is no text; save the table as CSV")
    return encoding, ""


def _eight_bit(content: bytes, first: int, uri: str) -> tuple[str, str]:
    """The 8-bit encoding of a text, and a warning that it is a guess.

    Raises:
        UsageError: most letters beyond ASCII are UTF-8, so that single bytes are damaged.
    """
    rest, characters = _UTF8_CHARACTER.subn(b"", content)
    if characters >= len(_NOT_ASCII.findall(rest)):
        raise UsageError(
            f"{uri}: line {_line(content, first, 'utf-8')} is not UTF-8, though others are; save the file as UTF-8"
        )
    encoding = "mac_roman" if b"\r" in content and b"\n" not in content else "cp1252"
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"
    return encoding, f"not UTF-8 and read as {encoding}; if names or classes look wrong, save the file as UTF-8"


def _line(content: bytes, position: int, encoding: str) -> int:
    """Number of the line that holds a byte."""
    text = codecs.decode(content[:position], encoding, "replace")
    return max(text.count("\n"), text.count("\r")) + 1


def _read_parquet(content: bytes, uri: str, known: Callable[[Sequence[str]], int]) -> Table:
    """Read the known columns of a Parquet file."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = [name for name in file.schema_arrow.names if known([name])]
        fields = [file.schema_arrow.field(name) for name in names]
        for field in fields:
            if pa.types.is_nested(field.type):
                raise UsageError(f"{uri}: column {field.name} is {field.type}; write text or numbers into it")
        batches = list(file.iter_batches(columns=names))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{uri}: not a whole Parquet file; write it again") from error

    def records() -> Iterator[tuple[int, Sequence[Any]]]:
        rows = (row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
        return enumerate(rows, start=1)

    return Table(names, records(), "Parquet")


def _read_excel(content: bytes, uri: str, known: Callable[[Sequence[str]], int]) -> Table:
    """Read the sheet whose first filled row has most known columns; of formulas, the values that were saved."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise UsageError(
            f"{uri}: reading Excel files needs openpyxl; pip install 'medfocus[excel]', or save the sheet as CSV"
        ) from error
    try:
        workbook = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = [list(_rows(sheet)) for sheet in workbook.worksheets]
    except (KeyError, ValueError, OSError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{uri}: not a whole Excel file (.xlsx); save the sheet as CSV") from error
    headers = [[_text(cell) for cell in rows[0][1]] if rows else [] for rows in sheets]
    if not headers:
        raise UsageError(f"{uri}: has no sheet with cells; save the table as CSV")
    chosen = max(range(len(headers)), key=lambda index: known(headers[index]))  # the first of equals
    return Table(headers[chosen], iter(sheets[chosen][1:]), f"Excel, sheet {chosen + 1} of {len(headers)}")


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _rows(sheet: Any) -> Iterator[tuple[int, Sequence[Any]]]:
    """Rows of a sheet that are not blank, each with its number."""
    sheet.reset_dimensions()  # other programs may write wrong dimensions
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        if any(_text(cell).strip() for cell in cells):
            yield number, cells
