"""What a file holds: its bytes, and all that is compressed or encoded in it."""

import gzip
import io
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medfocus.stages.formats.png import chunks_of

# Bytes that are decompressed of one stream, and archives within archives that are opened: beyond, it is a bomb.
_MOST_BYTES, _MOST_DEPTH = 1 << 30, 3
# Rows of Parquet that are in memory at once.
_ROWS = 64
# Errors of damaged and encrypted content; zipfile raises RuntimeError for members that are encrypted.
_UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zlib.error, sqlite3.Error, pa.ArrowException, BadZipFile)


@dataclass(frozen=True)
class Piece:
    """Bytes of a file to search.

    Attributes:
        content: the bytes.
        place: where in the file they are, such as ``column image``; empty for the file as it is.
        text: whether they are text.
        rows: the offsets [n + 1] of the rows in ``content``, where it joins those of a column; None for other pieces.
        first_row: number of the first of these rows.
        unread: whether this stands for compressed content that cannot be read, since it is damaged or encrypted.
    """

    content: bytes | memoryview
    place: str = ""
    text: bool = False
    rows: np.ndarray | None = None
    first_row: int = 0
    unread: bool = False

    def where(self, start: int, stop: int) -> str | None:
        """The place of a part of the content; None where it reaches over the end of a row."""
        if self.rows is None:
            return self.place
        row = int(np.searchsorted(self.rows, start, side="right")) - 1
        return f"{self.place}, row {self.first_row + row}" if stop <= self.rows[row + 1] else None


def pieces_of(content: bytes, depth: int = 0) -> Iterator[Piece]:
    """Yield the bytes of a file, and then what Parquet, SQLite, PNG, gzip and zip hold, also within each other."""
    yield Piece(content, text=_is_text(content))
    if depth < _MOST_DEPTH:
        yield from _inner_pieces(content, depth)


def _inner_pieces(content: bytes, depth: int) -> Iterator[Piece]:
    """What is compressed or encoded in a file; of a damaged one, as much as can be read."""
    readers = (
        (b"PAR1", _parquet_pieces),
        (b"SQLite format 3\0", _sqlite_pieces),
        (b"PK\x03\x04", _zip_pieces),
        (b"\x1f\x8b", _gzip_pieces),
        (b"\x89PNG\r\n\x1a\n", _png_pieces),
    )
    for signature, read in readers:
        if content.startswith(signature):
            yield from _guarded(read(content, depth))


def _guarded(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces up to the first that cannot be read, and one that says so."""
    try:
        yield from pieces
    except _UNREADABLE:
        yield Piece(b"", unread=True)


def _within(place: str, pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        inner = f"{place}, {piece.place}" if piece.place else place
        yield replace(piece, place=inner)


def _parquet_pieces(content: bytes, depth: int) -> Iterator[Piece]:
    """The values of each column, also within lists and structs."""
    first_row = 0
    for batch in pq.ParquetFile(io.BytesIO(content)).iter_batches(_ROWS):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            yield from _column_pieces(f"column {name}", column, first_row, depth)
        first_row += len(batch)


def _column_pieces(place: str, column: pa.Array, first_row: int, depth: int) -> Iterator[Piece]:
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        yield from _column_pieces(place, column.storage, first_row, depth)
    elif pa.types.is_dictionary(kind):
        yield from _column_pieces(place, column.dictionary_decode(), first_row, depth)
    elif pa.types.is_struct(kind):
        for field, values in zip(kind, column.flatten(), strict=True):
            yield from _column_pieces(f"{place}.{field.name}", values, first_row, depth)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _column_pieces(f"{place} (its values)", column.flatten(), 0, depth)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield _joined(place, pc.cast(column, pa.large_binary()), first_row, text=True)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield _joined(place, pc.cast(column, pa.large_binary()), first_row, text=False)
        for row, value in enumerate(column):
            yield from _within(f"{place}, row {first_row + row}", _inner_pieces(value.as_py() or b"", depth + 1))
    elif pa.types.is_integer(kind) or pa.types.is_temporal(kind):
        yield _joined(place, pc.cast(pc.cast(column, pa.string()), pa.large_binary()), first_row, text=True)


def _joined(place: str, column: pa.Array, first_row: int, *, text: bool) -> Piece:
    """The values of a column in one piece, with the offsets of its rows."""
    _, offsets, values = column.buffers()
    rows = np.frombuffer(offsets, np.int64, count=len(column) + 1, offset=8 * column.offset)
    content = memoryview(values or b"")[rows[0] : rows[-1]]
    return Piece(content, place, text, rows - rows[0], first_row)


def _sqlite_pieces(content: bytes, depth: int) -> Iterator[Piece]:
    """The values of each table: long ones are not in one piece in the file."""
    with closing(sqlite3.connect(":memory:")) as database:
        # The read and write version: a database in memory has no write-ahead log.
        database.deserialize(content[:18] + b"\1\1" + content[20:])
        database.text_factory = bytes
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            table = name.decode(errors="replace")
            quoted = table.replace('"', '""')
            for number, row in enumerate(database.execute(f'SELECT * FROM "{quoted}"')):
                joined = b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
                yield Piece(joined, f"table {table}, row {number}", text=True)
                for value in row:
                    if isinstance(value, bytes):
                        yield from _within(f"table {table}, row {number}", _inner_pieces(value, depth + 1))


def _zip_pieces(content: bytes, depth: int) -> Iterator[Piece]:
    with ZipFile(io.BytesIO(content)) as archive:
        for number, member in enumerate(archive.infolist()):
            yield from _within(f"member {number}", _guarded(_member_pieces(archive, member, depth)))


def _member_pieces(archive: ZipFile, member: ZipInfo, depth: int) -> Iterator[Piece]:
    with archive.open(member) as stream:
        yield from pieces_of(stream.read(_MOST_BYTES), depth + 1)


def _gzip_pieces(content: bytes, depth: int) -> Iterator[Piece]:
    with gzip.open(io.BytesIO(content)) as stream:
        yield from _within("gzip", pieces_of(stream.read(_MOST_BYTES), depth + 1))


def _png_pieces(content: bytes, _depth: int) -> Iterator[Piece]:
    """Texts and the colour profile that a PNG has compressed.

    The pixels are left out: in a smooth grey area, their values spell names and numbers by chance.
    """
    for kind, start, stop in chunks_of(content):
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            body = content[start + 8 : stop - 4]
            for place in _streams(body):
                yield Piece(_inflate(body[place:]), f"PNG {kind.decode()}", text=True)


def _streams(body: bytes) -> Iterator[int]:
    """Where a zlib stream can begin (RFC 1950): behind the fields of the chunk, whose length varies."""
    places = (place for place in range(len(body) - 1) if body[place] == 0x78)
    return (place for place in places if int.from_bytes(body[place : place + 2]) % 31 == 0)


def _inflate(stream: bytes) -> bytes:
    """The content of a zlib stream, as far as it is not damaged."""
    with suppress(zlib.error):
        return zlib.decompressobj().decompress(stream, _MOST_BYTES)
    return b""


def _is_text(content: bytes) -> bool:
    """Whether bytes are UTF-8 without null bytes, by their start."""
    start = content[:4096]
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 3 and len(content) > len(start)  # a letter that is cut
    return True
