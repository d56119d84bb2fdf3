"""What earlier runs have packed, and what it means for this one: what is due, and what does not count any more."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data import index
from medfocus.pipeline.data.index import PACKED, WITHDRAWN
from medfocus.pipeline.data.manifest import Manifest, ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, patient_pseudonym
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.duplicates import PackedPicture, find_duplicates
from medfocus.pipeline.ingest.items import UNCHANGED, Naming, revision_of

# Columns of the index in the order of the catalog's table.
_COLUMNS = (
    *("item", "container", "stamp", "outcome", "message", "shard", "row", "image_id", "pixels_sha256", "likeness"),
    *("split", "first_day", "label", "kind", "patient_id", "study_id", "series_id", "instance_id", "accession"),
    *("site", "study_date"),
)
# Whether a newer content of the item of a row is packed.
_REPLACED = f"""
rows.outcome IN ('{PACKED}', '{UNCHANGED}') AND EXISTS (SELECT 1 FROM rows AS newer WHERE newer.item = rows.item
    AND newer.outcome = '{PACKED}' AND newer.revision > rows.revision)
"""
# The rows of an item in its present content. A content that was there before, and was replaced, is packed anew.
_DONE = f"""
SELECT 1 FROM rows JOIN files ON files.number = items.file WHERE rows.item = items.item AND rows.stamp = files.stamp
    AND NOT ({_REPLACED})
"""
# Items whose patient is not known now, and had withdrawn when it was.
_STILL_WITHDRAWN = f"""
UPDATE items SET outcome = '{WITHDRAWN}' WHERE outcome IS NULL AND patient IS NULL
    AND EXISTS (SELECT 1 FROM rows WHERE rows.item = items.item AND rows.outcome = '{WITHDRAWN}')
"""
_OTHER_LABELS = f"""
SELECT count(DISTINCT items.item) FROM items JOIN rows ON rows.item = items.item
WHERE items.outcome IS NULL AND NOT items.due AND rows.outcome = '{PACKED}' AND rows.live > 0
    AND (items.label != rows.label OR items.patient != rows.patient
        OR (items.label IS NOT NULL AND rows.label IS NULL) OR (items.patient IS NOT NULL AND rows.patient IS NULL))
"""
# Duplicates are found out again: the picture that was kept may have left with its patient.
_COUNT_AGAIN = "UPDATE rows SET live = 1 WHERE live = -1"
_END_REPLACED = f"UPDATE rows SET live = 0 WHERE {_REPLACED}"


class History:
    """The index of a prefix, in the catalog's table ``rows``.

    A row there is ``live``: 2 if the current manifest counts it, 1 if it is new, 0 if it does not count any more, and
    -1 if the current manifest does not count it, as long as the reason has not been looked for.

    Args:
        catalog: the catalog.
        prefix: prefix of the shards.
        current: current manifest; None where there is none yet.
        pseudonyms: they mask days in the index.
    """

    def __init__(self, catalog: Catalog, prefix: Location, current: Manifest | None, pseudonyms: Pseudonyms):
        self.catalog, self.prefix, self.pseudonyms = catalog, prefix, pseudonyms
        self.current = {shard.name: shard for shard in current.shards} if current else {}
        self.shards: dict[str, ShardEntry] = {}
        self.portions: set[str] = set()

    def restart(self, current: Manifest | None) -> None:
        """Read the index anew, after a withdrawal has changed it."""
        self.current = {shard.name: shard for shard in current.shards} if current else {}
        self.shards, self.portions = {}, set()
        self.read()

    def read(self) -> None:
        """Read the index files that have not been read."""
        if not self.portions:
            self.catalog.run("DELETE FROM rows")
        marks = ", ".join("?" * (len(_COLUMNS) + 2))
        for portion in index.read_portions(self.prefix, skip=self.portions):
            self.portions.add(portion.id)
            self.shards |= {shard.name: shard for shard in portion.shards}
            self.catalog.run_each(f"INSERT INTO rows VALUES ({marks})", self._rows(portion.rows))

    def _rows(self, table: pa.Table) -> Iterator[tuple[object, ...]]:
        for row in table.to_pylist():
            for name in ("first_day", "study_date"):
                if row[name] is not None:
                    row[name] = self.pseudonyms.unmask_day(row["patient_id"], row[name])
            shard = self.current.get(row["shard"] or "")
            live = 1 if shard is None else 2 if row["row"] not in shard.replaced else -1
            yield (*(row[name] for name in _COLUMNS), live, revision_of(row["item"], row["image_id"]))

    def mark_due(self, withdrawn: Iterable[str] = ()) -> None:
        """Mark the items that are to be packed: new and changed ones, but not those of patients who have withdrawn.

        Args:
            withdrawn: pseudonyms of these patients.
        """
        self.catalog.run_each(
            f"UPDATE items SET outcome = '{WITHDRAWN}' WHERE outcome IS NULL AND patient = ?",
            [(patient,) for patient in withdrawn],
        )
        self.catalog.run(_STILL_WITHDRAWN)
        self.catalog.run(f"UPDATE items SET due = outcome IS NULL AND NOT EXISTS ({_DONE})")

    def warn_of_other_labels(self) -> None:
        """Log how many packed images have another label or patient now: what is packed is not written again."""
        count = self.catalog.one(_OTHER_LABELS)
        if count:
            log.warning(
                "%d images are packed with another label or patient than they have now, and keep it; pack them into a"
                " new prefix to change it",
                count,
            )

    def retry(self) -> None:
        """Mark the items that could not be packed, too. As their portions may be written anew, all are read again."""
        kept = f"AND rows.outcome IN ('{PACKED}', '{UNCHANGED}', '{WITHDRAWN}')"
        self.catalog.run(f"UPDATE items SET due = outcome IS NULL AND NOT EXISTS ({_DONE} {kept})")
        self.portions = set()

    def note_earlier(self) -> None:
        """Give due items the number of their earlier contents, and the digests of the pictures that count now."""
        changed = self.catalog.query(
            f"SELECT DISTINCT number, items.item FROM items JOIN rows ON rows.item = items.item WHERE due AND"
            f" rows.outcome = '{PACKED}'"
        )
        self.catalog.run_each(
            "UPDATE items SET revision = ?, digests = ? WHERE number = ?",
            [(*self._earlier(item), number) for number, item in list(changed)],
        )

    def _earlier(self, item: str) -> tuple[int, str]:
        packed = f"item = ? AND outcome = '{PACKED}'"
        revisions = self.catalog.one(f"SELECT 1 + max(revision) FROM rows WHERE {packed}", (item,))
        digests = self.catalog.query(
            f"SELECT digest FROM rows WHERE {packed} AND live > 0 ORDER BY shard, row", (item,)
        )
        return revisions, json.dumps([digest for (digest,) in digests])

    def next_shards(self, *, drop_duplicates: bool) -> list[ShardEntry]:
        """The shards of the next manifest version, each with the rows that do not count any more."""
        for statement in (_COUNT_AGAIN, _END_REPLACED):
            self.catalog.run(statement)
        if drop_duplicates:
            found = find_duplicates(self._pictures)
            found.log()
            self.catalog.run_each("UPDATE rows SET live = 0 WHERE image_id = ?", [(image,) for image in found.kept])
        ended: dict[str, set[int]] = defaultdict(set)
        labelled: dict[str, int] = defaultdict(int)
        for shard, row, label in self.catalog.query(
            "SELECT shard, row, label FROM rows WHERE shard IS NOT NULL AND NOT live"
        ):
            ended[shard].add(row)
            labelled[shard] += label is not None
        return [self._without(shard, ended[shard.name], labelled[shard.name]) for shard in self.shards.values()]

    def _without(self, shard: ShardEntry, rows: set[int], labelled: int) -> ShardEntry:
        """The entry of a shard as it was written, without rows, some of which are labelled."""
        remaining = None if shard.labelled is None else shard.labelled - labelled
        return replace(shard, rows=shard.rows - len(rows), labelled=remaining, replaced=tuple(sorted(rows)))

    def _pictures(self) -> Iterator[PackedPicture]:
        """The pictures that count."""
        rows = self.catalog.query(
            "SELECT image_id, digest, likeness, patient, label, 2 - live FROM rows WHERE live AND digest IS NOT NULL"
        )
        return map(PackedPicture._make, rows)


def patients_of(file: Path, history: History, naming: Naming) -> set[str]:
    """Pseudonyms of the patients that a text file names, one a line, by their PatientID or by a pseudonym.

    Args:
        file: the file.
        history: what is packed.
        naming: names of items and rows.

    Raises:
        UsageError: the file cannot be read, or names nobody.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not a readable UTF-8 text file; correct --withdraw") from error
    names = {line.strip() for line in lines} - {""}
    if not names:
        raise UsageError(f"{file}: names no patient; write a PatientID on each line")
    known = {name for name in names if history.catalog.one("SELECT count(*) FROM rows WHERE patient = ?", (name,))}
    return known | {patient_pseudonym(naming.pseudonyms, name) or "" for name in names - known}
