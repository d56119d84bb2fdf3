"""Withdrawal: the rows of patients leave an archive, and the shards that held them are written anew without them.

``withdrawn.json`` names the patients, by their pseudonyms, and what is still to do. A withdrawal writes the new shards,
notes in this file what takes the place of what, changes the index and the manifest accordingly, and removes the old
shards last. A withdrawal that was stopped is brought to its end by the next one; until then nothing may be packed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medfocus.pipeline.data import records
from medfocus.pipeline.data.index import SHARD_PREFIX, WITHDRAWN, Portion, commit_portion, read_portions
from medfocus.pipeline.data.manifest import ShardEntry, newest_manifest, write_manifest
from medfocus.pipeline.data.shards import read_file
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.data.tables import each_of, read_columns
from medfocus.pipeline.errors import UsageError

FILE = "withdrawn.json"
# Columns of the index that stay for an image that has been removed.
_LEFT = ("item", "container", "stamp", "kind", "patient_id")
# Files of shards, and what a stopped write of one leaves on a local disk.
_SHARD_FILE = re.compile(rf"{SHARD_PREFIX}[^/]*\.parquet|\.{SHARD_PREFIX}[^/]*\.parquet\.[0-9a-f]+")


@dataclass(frozen=True)
class Rewrite:
    """A shard that has been written anew.

    Args:
        old: name of the earlier file.
        written: entry of the new file as it was written; None where no row is left.
        counted: the same entry without the rows that are replaced, for the manifest.
        removed: sorted numbers of the rows of the earlier file that the new one has no more.
        patients: pseudonyms of the patients of these rows.
    """

    old: str
    written: ShardEntry | None
    counted: ShardEntry | None
    removed: tuple[int, ...]
    patients: frozenset[str]

    def place(self, row: int) -> int | None:
        """Number of a row of the earlier file in the new file; None where it was removed."""
        before = int(np.searchsorted(self.removed, row))
        return None if before < len(self.removed) and self.removed[before] == row else row - before

    def to_fields(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self) | {"patients": sorted(self.patients)}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Rewrite":
        """The inverse of ``to_fields``."""
        entries = {name: fields[name] and ShardEntry.of(fields[name]) for name in ("written", "counted")}
        return cls(fields["old"], **entries, removed=tuple(fields["removed"]), patients=frozenset(fields["patients"]))


@dataclass(frozen=True)
class Withdrawal:
    """What a withdrawal has done.

    Args:
        patients: number of patients who had rows.
        rows: number of rows that were removed.
        shards: number of shards that were written anew, or removed where no row was left.
        version: version of the manifest that has the rows no more; 0 where there is no manifest yet.
    """

    patients: int
    rows: int
    shards: int
    version: int


# Runs a function for each shard, as ``each_of`` does.
Each = Callable[[Iterable[ShardEntry], Callable[[ShardEntry], Rewrite]], Iterable[Rewrite]]


def _one_by_one(shards: Iterable[ShardEntry], rewrite: Callable[[ShardEntry], Rewrite]) -> Iterator[Rewrite]:
    return map(rewrite, shards)


def withdrawn(prefix: Location) -> frozenset[str]:
    """Pseudonyms of the patients who have withdrawn, whose images must not be packed again.

    Raises:
        UsageError: a withdrawal was stopped here.
    """
    state = _read_state(prefix)
    if state["pending"] is not None:
        raise UsageError(f"{prefix.uri}: a withdrawal was stopped here; call medfocus pack --withdraw again")
    return frozenset(state["patients"])


def withdraw(prefix: Location, patients: Collection[str], each: Each = _one_by_one) -> Withdrawal:
    """Remove the rows of patients from an archive, and go on with a withdrawal that was stopped.

    Nothing else may write to the prefix meanwhile: shard files that neither the manifest nor the index names, which a
    stopped ``pack`` has left, are removed too.

    Args:
        prefix: prefix of the shards.
        patients: pseudonyms of the patients.
        each: runs a function that can be pickled for each of several shards. The default holds one in memory.

    Returns:
        What was done, with what a withdrawal had left to do that was stopped.

    Raises:
        UsageError: this program cannot read the archive.
        MedFocusError: a shard is damaged, or ``pack`` has committed a version meanwhile.
        StorageError: a file cannot be read or written.
    """
    state = _read_state(prefix)
    rewrites = [Rewrite.of(fields) for fields in (state["pending"] or {}).get("rewrites", [])]
    wanted = frozenset(state["patients"]) | frozenset(patients)
    if rewrites:
        _apply(prefix, frozenset(state["patients"]), rewrites)
    _write_state(prefix, wanted, pending={})
    new = list(each(_affected(prefix, wanted), partial(rewrite_shard, prefix=prefix, patients=wanted)))
    _write_state(prefix, wanted, pending={"rewrites": [rewrite.to_fields() for rewrite in new]})
    version = _apply(prefix, wanted, new)
    rewrites += new
    return Withdrawal(
        patients=len(frozenset[str]().union(*(rewrite.patients for rewrite in rewrites))),
        rows=sum(len(rewrite.removed) for rewrite in rewrites),
        shards=len(rewrites),
        version=version,
    )


def rewrite_shard(shard: ShardEntry, prefix: Location, patients: frozenset[str]) -> Rewrite:
    """Write a shard anew, under another name and without the rows of some patients. The earlier file stays.

    Args:
        shard: entry of the shard.
        prefix: prefix of the shards.
        patients: pseudonyms of the patients.

    Raises:
        ShardError: the file is damaged.
        StorageError: a file cannot be read or written.
    """
    table = read_file(shard, prefix)
    leaves = _belongs_to(table["patient_id"], patients)
    removed = np.flatnonzero(leaves)
    found = frozenset(table["patient_id"].filter(pa.array(leaves)).unique().to_pylist())
    rewrite = Rewrite(shard.name, None, None, tuple(removed.tolist()), found)
    rest = table.filter(pa.array(~leaves))
    if not rest.num_rows:
        return rewrite
    content = records.encode(rest)
    digest = hashlib.sha256(content).hexdigest()
    written = ShardEntry(_new_name(shard.name, digest), rest.num_rows, len(content), digest, _labelled(rest))
    (prefix / written.name).write(content)
    places = (rewrite.place(row) for row in shard.replaced)
    replaced = replace(written, replaced=tuple(place for place in places if place is not None))
    remaining = replaced.remaining(rest.select(["label"]))
    counted = replace(replaced, rows=remaining.num_rows, labelled=_labelled(remaining))
    return replace(rewrite, written=written, counted=counted)


def _labelled(table: pa.Table) -> int:
    """Number of rows with a label."""
    return table.num_rows - table["label"].null_count


def _belongs_to(column: pa.ChunkedArray, patients: Collection[str]) -> np.ndarray:
    """Whether each row is of one of the patients, bool [rows]; a row without a patient is not."""
    return pc.is_in(column, value_set=pa.array(sorted(patients), pa.string())).to_numpy()


def _new_name(name: str, digest: str) -> str:
    """Name of the file with this digest that takes the place of another one."""
    return f"{name.partition('.')[0]}.{digest[:16]}.parquet"


def _affected(prefix: Location, patients: frozenset[str]) -> list[ShardEntry]:
    """Shards of the manifest, and of portions that it does not have yet, with rows of the patients."""
    manifest = newest_manifest(prefix)
    shards = {shard.name: shard for portion in read_portions(prefix) for shard in portion.shards}
    shards |= {shard.name: shard for shard in (manifest.shards if manifest else ())}

    def holds(shard: ShardEntry) -> bool:
        table = read_columns(prefix / shard.name, records.SHARD, ["patient_id"])
        return bool(_belongs_to(table["patient_id"], patients).any())

    known = list(shards.values())
    return [shard for shard, affected in zip(known, each_of(known, holds), strict=True) if affected]


def _apply(prefix: Location, patients: frozenset[str], rewrites: Sequence[Rewrite]) -> int:
    """Let the index and the manifest name the new shards, and remove the old ones. It may be done again at any point.

    Returns:
        Version of the newest manifest; 0 where there is none.
    """
    of = {rewrite.old: rewrite for rewrite in rewrites}
    known = set()
    for portion in read_portions(prefix):
        changed = _without(portion, patients, of)
        if changed is not portion:
            commit_portion(prefix, changed)
        known |= {shard.name for shard in changed.shards}
    manifest = newest_manifest(prefix)
    if manifest is not None and any(shard.name in of for shard in manifest.shards):
        shards = [of[shard.name].counted if shard.name in of else shard for shard in manifest.shards]
        left = [shard for shard in shards if shard is not None]
        manifest = write_manifest(prefix, left, earlier=manifest, key_fingerprint=manifest.key_fingerprint)
    known |= {shard.name for shard in manifest.shards} if manifest else set()
    for name in prefix.files():
        if name not in known and _SHARD_FILE.fullmatch(name):
            (prefix / name).delete()
    _write_state(prefix, patients, pending=None)
    return manifest.version if manifest else 0


def _without(portion: Portion, patients: frozenset[str], of: dict[str, Rewrite]) -> Portion:
    """A portion without the rows of the patients; the same object where it has none."""
    rows = portion.rows
    leaves = _belongs_to(rows["patient_id"], patients)
    moves = pc.is_in(rows["shard"], value_set=pa.array(sorted(of), pa.string())).to_numpy()
    if not leaves.any() and not moves.any() and not any(shard.name in of for shard in portion.shards):
        return portion
    fields = rows.to_pylist()
    for number in np.flatnonzero(leaves | moves):
        fields[number] = _moved(fields[number], None if leaves[number] else of[fields[number]["shard"]])
    table = pa.Table.from_pylist(fields, schema=records.INDEX)
    shards = (of[shard.name].written if shard.name in of else shard for shard in portion.shards)
    return replace(portion, rows=table, shards=tuple(shard for shard in shards if shard is not None))


def _moved(row: dict[str, Any], rewrite: Rewrite | None) -> dict[str, Any]:
    """A row of the index with its place in the new shard.

    Of an image that has been removed, what is left tells the next ``pack`` that the item is not to be packed.
    """
    place = rewrite.place(row["row"]) if rewrite else None
    if rewrite is None or rewrite.written is None or place is None:
        return {name: row[name] for name in _LEFT} | {"outcome": WITHDRAWN}
    return row | {"shard": rewrite.written.name, "row": place}


def _read_state(prefix: Location) -> dict[str, Any]:
    """What ``withdrawn.json`` says: ``patients``, and ``pending``, which is None where nothing is left to do.

    Raises:
        UsageError: the file is not of this program.
    """
    location = prefix / FILE
    if not location.exists():
        return {"patients": [], "pending": None}
    try:
        state = location.read_json()
        return {"patients": list(state["patients"]), "pending": state["pending"]}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{location.uri}: names no patients; restore it from a backup") from error


def _write_state(prefix: Location, patients: frozenset[str], pending: dict[str, Any] | None) -> None:
    (prefix / FILE).write_json({"patients": sorted(patients), "pending": pending})
