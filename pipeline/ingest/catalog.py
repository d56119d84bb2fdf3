"""The catalog: what is in a source, in a database on the driver's disk, so that its size is no matter of memory.

It holds paths, which may identify patients. Its file can be read by its owner alone, and is removed after the run.
After a run that was stopped it stays, and the next run does not survey the same files again.
"""

import hashlib
import itertools
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from medfocus.pipeline.data.index import PACKED, WITHDRAWN
from medfocus.pipeline.data.local_tree import Entry, Kind, encoded
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.ingest.items import (
    ARCHIVE,
    NOT_AN_IMAGE,
    UNCHANGED,
    Naming,
    SurveyRow,
    distinct_texts,
)
from medfocus.pipeline.ingest.source import identifier, safe_suffix

_IDS = "patient, study, series, instance, accession, site, study_date"
_ROW_IDS = ", ".join(f"rows.{name}" for name in _IDS.split(", "))
_TABLES = f"""
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY, name BLOB UNIQUE, size INTEGER, written TEXT, walk INTEGER, surveyed INTEGER DEFAULT 0,
    path TEXT, item TEXT, stamp TEXT, sort INTEGER
);
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY, file INTEGER, member TEXT, place INTEGER, size INTEGER, kind TEXT, outcome TEXT,
    message TEXT, {_IDS}, original TEXT, path TEXT, item TEXT, label TEXT, split TEXT, first_day INTEGER,
    revision INTEGER DEFAULT 0, digests TEXT, due INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS audits (counts TEXT);
CREATE INDEX IF NOT EXISTS files_item ON files (item);
CREATE INDEX IF NOT EXISTS files_path ON files (path);
CREATE INDEX IF NOT EXISTS items_file ON items (file);
CREATE INDEX IF NOT EXISTS items_item ON items (item);
CREATE INDEX IF NOT EXISTS items_patient ON items (patient);
DROP TABLE IF EXISTS rows;
CREATE TABLE rows (
    item TEXT, container TEXT, stamp TEXT, outcome TEXT, message TEXT, shard TEXT, row INTEGER, image_id TEXT,
    digest TEXT, likeness TEXT, split TEXT, first_day INTEGER, label TEXT, kind TEXT, {_IDS}, live INTEGER,
    revision INTEGER
);
CREATE INDEX rows_item ON rows (item);
CREATE INDEX rows_container ON rows (container);
CREATE INDEX rows_image ON rows (image_id);
DROP TABLE IF EXISTS troubles;
CREATE TABLE troubles (path TEXT, error TEXT, message TEXT);
DROP TABLE IF EXISTS patients;
CREATE TABLE patients (patient TEXT PRIMARY KEY, first_day INTEGER);
DROP TABLE IF EXISTS splits;
CREATE TABLE splits (patient TEXT PRIMARY KEY, split TEXT);
"""
_ADD_FILE = """
INSERT INTO files (name, size, written, walk, path, item, stamp, sort) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET surveyed = surveyed AND written = excluded.written, size = excluded.size,
    written = excluded.written, walk = excluded.walk, path = excluded.path, item = excluded.item, stamp = excluded.stamp
"""
# Whether the row of an earlier run, whose table stands for {}, is of an item that cannot be packed.
_REFUSED = f"{{}}.outcome NOT IN ('{PACKED}', '{UNCHANGED}', '{WITHDRAWN}', '{ARCHIVE}')"
_ADOPT = f"""
INSERT INTO items (file, member, place, size, kind, outcome, {_IDS}, path, item)
SELECT files.number, {{member}}, 0, files.size, rows.kind,
    CASE rows.outcome WHEN '{WITHDRAWN}' THEN '{WITHDRAWN}' END, {_ROW_IDS}, files.path, rows.item
FROM files JOIN rows ON rows.{{column}} = files.item AND rows.stamp = files.stamp
WHERE NOT surveyed AND rows.outcome != '{ARCHIVE}' {{again}} GROUP BY rows.item
"""
_REFUSED_ROWS = f"""
SELECT rows.item, coalesce(items.path, ''), rows.outcome, rows.message FROM rows
LEFT JOIN items ON items.item = rows.item LEFT JOIN files ON files.number = items.file
WHERE {_REFUSED.format("rows")} AND (files.stamp IS NULL OR files.stamp = rows.stamp)
    AND NOT EXISTS (SELECT 1 FROM rows AS other WHERE other.item = rows.item AND other.stamp = rows.stamp
        AND NOT {_REFUSED.format("other")})
GROUP BY rows.item ORDER BY rows.item
"""
_SURVEY_COLUMNS = [field.name for field in fields(SurveyRow)]
_DUPLICATE_NAME = ("DuplicateId", "another file of the source has the same name; rename one of them")
# Entries that are written in one transaction.
_BATCH = 10_000

T = TypeVar("T")


@contextmanager
def open_catalog(work: str, name: str) -> Iterator["Catalog"]:
    """Open the catalog of a source in the work folder, or create it, for the length of a block.

    It stays after an error, so that the next call need not survey again.

    Args:
        work: the work folder.
        name: text that tells sources, prefixes and keys apart.

    Raises:
        UsageError: the work folder cannot be written, or another process has the catalog.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = Path(work).absolute() / "pack"
    lock = FileLock(folder / f"{digest}.lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        catalog = _open(folder / f"{digest}.sqlite")  # it changes the file: not before the lock is held
    except Timeout as error:
        raise UsageError(
            "another medfocus pack with this SOURCE and these SHARDS runs on this machine; wait until it ends"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be made ({error.strerror}); set work to a folder that can be written"
        ) from error
    finished = False
    try:
        yield catalog
        finished = True
    finally:
        catalog.close(remove=finished)
        lock.release()


def _open(file: Path) -> "Catalog":
    """Open a catalog; one that a power loss has damaged is made anew."""
    try:
        return Catalog(file)
    except sqlite3.DatabaseError:
        _remove(file)
        return Catalog(file)


def _remove(file: Path) -> None:
    """Remove the files of a catalog."""
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


class Catalog:
    """The catalog of one source.

    Args:
        file: the database; it is created where there is none.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        self.file = file
        self.connection = sqlite3.connect(file, isolation_level=None)
        self.connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + _TABLES)

    def close(self, *, remove: bool) -> None:
        """Close the database, and remove its files if they are not needed again."""
        self.connection.close()
        if remove:
            _remove(self.file)

    def query(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement, as they are read."""
        return iter(self.connection.execute(statement, values))

    def one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The one value of a statement."""
        return self.connection.execute(statement, values).fetchone()[0]

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Run a statement that changes the catalog."""
        self.connection.execute(statement, values)

    def run_each(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of some rows, in transactions."""
        for batch in groups(rows, _BATCH):
            self.connection.execute("BEGIN")
            self.connection.executemany(statement, batch)
            self.connection.execute("COMMIT")

    def list_files(self, entries: Iterable[Entry], naming: Naming) -> None:
        """Take the files of a walk. Files that are not there any more leave, and those that changed are surveyed anew.

        Entries of the kind ``TROUBLE`` become troubles, and files that have no name of their own.
        """
        walk = self.one("SELECT coalesce(max(walk), 0) + 1 FROM files")
        troubles: list[tuple[str, str, str]] = []

        def files() -> Iterator[tuple[Any, ...]]:
            for entry in entries:
                path = identifier(entry.name)
                if entry.kind is Kind.TROUBLE:
                    troubles.append((path, entry.error, entry.message))
                    continue
                name, written = encoded(entry.name), f"{entry.stamp} {entry.size}"
                sort = int.from_bytes(hashlib.sha256(name).digest()[:6])
                yield name, entry.size, written, walk, path, naming.item(path), naming.stamp(written), sort

        self.run_each(_ADD_FILE, files())
        self.run("DELETE FROM files WHERE walk < ?", (walk,))
        self._name_conflicts(naming)
        self.run("DELETE FROM items WHERE file NOT IN (SELECT number FROM files WHERE surveyed)")
        self.run_each("INSERT INTO troubles VALUES (?, ?, ?)", troubles)

    def _name_conflicts(self, naming: Naming) -> None:
        """Rename files that have the same path as text."""
        for (path,) in list(self.query("SELECT path FROM files GROUP BY path HAVING count(*) > 1")):
            group = list(self.query("SELECT number, name FROM files WHERE path = ?", (path,)))
            for number, text in distinct_texts([(number, file_of(name)) for number, name in group]).items():
                if text is None or (text != path and self.one("SELECT count(*) FROM files WHERE path = ?", (text,))):
                    self.run("DELETE FROM files WHERE number = ?", (number,))
                    self.run("INSERT INTO troubles VALUES (?, ?, ?)", (path, *_DUPLICATE_NAME))
                else:
                    self.run("UPDATE files SET path = ?, item = ? WHERE number = ?", (text, naming.item(text), number))

    def adopt_packed(self, *, retry_quarantined: bool) -> None:
        """Take the items of files that an earlier run has packed from its index: they need not be surveyed.

        Args:
            retry_quarantined: leave files with an item that could not be packed to the survey.
        """
        again = "AND NOT EXISTS (SELECT 1 FROM rows AS bad WHERE bad.stamp = files.stamp AND files.item IN (bad.item,"
        again += f" bad.container) AND {_REFUSED.format('bad')})"
        for column, member in (("item", "''"), ("container", "rows.item")):
            self.run(_ADOPT.format(column=column, member=member, again=again if retry_quarantined else ""))
        self.run("UPDATE files SET surveyed = 1 WHERE number IN (SELECT file FROM items)")

    def files_to_survey(self) -> Iterator[dict[str, Any]]:
        """Number, name and size of the files that have not been surveyed."""
        for number, name, size in self.query("SELECT number, name, size FROM files WHERE NOT surveyed ORDER BY number"):
            yield {"number": number, "name": name, "size": size}

    def add_survey(self, numbers: Sequence[int], rows: Iterable[SurveyRow], audit: str) -> None:
        """Take the result of the survey of some files, with the audit of their headers as JSON."""
        marks = ", ".join("?" * len(_SURVEY_COLUMNS))
        self.connection.execute("BEGIN")
        self.connection.executemany(
            f"INSERT INTO items ({', '.join(_SURVEY_COLUMNS)}) VALUES ({marks})", map(astuple, rows)
        )
        self.connection.execute("INSERT INTO audits VALUES (?)", (audit,))
        self.connection.executemany("UPDATE files SET surveyed = 1 WHERE number = ?", [(number,) for number in numbers])
        self.connection.execute("COMMIT")

    def name_items(self, naming: Naming) -> None:
        """Give each item its name, which is the same in every run: that of its file, or of its place in an archive."""
        self.run(
            "UPDATE items SET path = (SELECT path FROM files WHERE number = file),"
            " item = (SELECT item FROM files WHERE number = file) WHERE item IS NULL AND member = ''"
        )
        members = self.query(
            "SELECT items.number, files.path, member FROM items JOIN files ON files.number = file"
            " WHERE items.item IS NULL"
        )
        for group in groups(members, _BATCH):
            paths = [(f"{path}/{identifier(member)}", number) for number, path, member in group]
            self.run_each(
                "UPDATE items SET path = ?, item = ? WHERE number = ?",
                [(path, naming.item(path), number) for path, number in paths],
            )

    def left_out(self) -> Counter[str]:
        """Number of files that are no images, by suffix or by the kind of DICOM object."""
        rows = self.query(
            "SELECT name, member, message FROM items JOIN files ON files.number = file WHERE outcome = ?",
            (NOT_AN_IMAGE,),
        )
        return Counter(message or safe_suffix(member or file_of(name)) for name, member, message in rows)

    def images(self) -> int:
        """Number of items that may be packed."""
        count: int = self.one("SELECT count(*) FROM items WHERE outcome IS NULL")
        return count

    def refusals(self, naming: Naming) -> Iterator[tuple[str, str, str, str]]:
        """Name, path, class of the error, and message of each file and item that cannot be packed."""
        for path, error, message in self.query("SELECT path, error, message FROM troubles ORDER BY path"):
            yield naming.item(path), path, error, message
        yield from self.query(
            "SELECT item, path, outcome, message FROM items WHERE outcome NOT IN (?, ?, ?) ORDER BY item",
            (NOT_AN_IMAGE, ARCHIVE, WITHDRAWN),
        )
        yield from self.query(_REFUSED_ROWS)


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size`` items."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def file_of(name: bytes) -> str:
    """A name of the catalog as a path, with lone surrogates for bytes that are not UTF-8."""
    return name.decode("utf-8", "surrogateescape")
