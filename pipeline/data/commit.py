"""The output of a run: which shards are finished, and how the rows of a shard are committed exactly once.

The output files of a shard are named by its key, so writing a shard again overwrites them. A shard is finished when
its rows file exists: the quarantine file is written first, the rows file last. A finished shard is not read again. The
files of a shard that the archive no longer has, or whose rows have been replaced since, are removed at the next start.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import Manifest, ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError, UsageError

RUN_FILE = "run.json"
PREDICTIONS, FEATURES, QUARANTINE = "predictions", "features", "quarantine"
_PART = "part-"


def part_name(shard_key: str) -> str:
    """Name of the output files of a shard with this key."""
    return f"{_PART}{shard_key[:32]}.parquet"


def settings_key(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings as JSON, in hexadecimal; settings that produce different rows have different keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Output:
    """The output of a run: rows and quarantine, a file of each for every shard, and the record of the run.

    Args:
        prefix: prefix that the command writes to.
        folder: name of the folder below the prefix that holds the rows (``predictions`` or ``features``).
        replaces: whether finished shards may be written again.
    """

    prefix: Location
    folder: str
    replaces: bool = False

    @property
    def rows(self) -> Location:
        """Folder of the rows files."""
        return self.prefix / self.folder

    @property
    def quarantine(self) -> Location:
        """Folder of the quarantine files."""
        return self.prefix / QUARANTINE

    def begin(
        self,
        settings: Mapping[str, Any],
        manifest: Manifest,
        *,
        overwrite: bool = False,
        retry_quarantined: bool = False,
    ) -> tuple[dict[str, Any], list[ShardEntry]]:
        """Start or continue the run with these settings.

        One listing of the rows files says which shards are finished; no file is read. Rows of shards that the archive
        had in an earlier version and has no more are removed: their images were replaced or withdrawn.

        Args:
            settings: everything that decides the rows.
            manifest: manifest of the shards.
            overwrite: remove the rows of earlier runs first.
            retry_quarantined: process shards with quarantined rows again. Each keeps its rows until the new ones are
                written. ``max_pixels``, which changes quarantined rows only, may then differ from the earlier run's.

        Returns:
            The record of the run, and the shards that are not finished. If there are any, the record says so.

        Raises:
            UsageError: the prefix holds rows of other settings, rows of another archive, or rows without a record.
        """
        if overwrite:
            self.clear()
        record = self._record(settings, may_retry=retry_quarantined)
        known = {part_name(shard.key) for shard in manifest.shards}
        finished, quarantined = set(self.rows.files(".parquet")), set(self.quarantine.files(".parquet"))
        stale = (finished | {name for name in quarantined if name.startswith(_PART)}) - known
        if stale & finished and record.get("archive") != manifest.archive:
            raise UsageError(
                f"{self.prefix.uri}: holds rows of {len(stale & finished)} shards that are not in SHARDS;"
                " choose a new prefix or --overwrite"
            )
        done = finished & known - quarantined if retry_quarantined else finished & known
        todo = [shard for shard in manifest.shards if part_name(shard.key) not in done]
        if todo or stale or "finished" not in record:
            record["finished"] = False
        record["archive"] = manifest.archive
        self._write_record(record)  # before any row changes, so that readers know that the rows are incomplete
        self._remove(stale)
        return record, todo

    def _remove(self, names: Set[str]) -> None:
        """Remove the output files of shards that the archive has no more."""
        for name in sorted(names):
            (self.rows / name).delete()
            (self.quarantine / name).delete()
        if names:
            log.info(
                "%s: removed the rows of %d shards that SHARDS has no more, as their images were replaced or withdrawn",
                self.prefix.uri,
                len(names),
            )

    def _record(self, settings: Mapping[str, Any], *, may_retry: bool) -> dict[str, Any]:
        """The record of the earlier run with these settings; a new record if the prefix is empty.

        Raises:
            UsageError: the prefix holds rows without a record, or of other settings.
        """
        key = settings_key(settings)
        if not (self.prefix / RUN_FILE).exists():
            if self.rows.files(".parquet"):
                raise UsageError(f"{self.prefix.uri}: holds rows without a {RUN_FILE}; choose a new prefix")
            return {"key": key, "settings": dict(settings)}
        record = self.read_record()
        if record.get("emptied"):
            raise UsageError(f"{self.prefix.uri}: a call with --overwrite was stopped here; give --overwrite again")
        if record.get("key") == key:
            return record
        changed = _differences(record.get("settings", {}), settings)
        if not may_retry or changed != ["max_pixels"]:
            raise UsageError(
                f"{self.prefix.uri}: holds rows made with another {', '.join(changed) or 'program'};"
                " choose a new prefix or --overwrite"
            )
        return record | {"key": key, "settings": dict(settings)}

    def read_record(self) -> dict[str, Any]:
        """Read the record of the run.

        Raises:
            StorageError: the file cannot be read.
            UsageError: the file is not a record of a run.
        """
        location = self.prefix / RUN_FILE
        try:
            record = location.read_json()
        except ValueError as error:
            raise UsageError(f"{location.uri}: not a record of a run; choose a new prefix") from error
        if not isinstance(record, dict):
            raise UsageError(f"{location.uri}: not a record of a run; choose a new prefix")
        return record

    def _write_record(self, record: Mapping[str, Any]) -> None:
        (self.prefix / RUN_FILE).write_json(record)

    def update(self, **entries: Any) -> None:
        """Set entries of the run's record."""
        self._write_record(self.read_record() | entries)

    def clear(self) -> None:
        """Remove all rows, and the record last, so that the rest of the rows never passes for all of them."""
        if (self.prefix / RUN_FILE).exists():
            self._write_record({"emptied": True, "finished": False})
        for place in (self.rows, self.quarantine, self.prefix / RUN_FILE):
            place.delete()

    def quarantined(self) -> int:
        """Number of quarantined rows of all finished shards, read from the footers of the quarantine files."""
        finished = set(self.rows.files(".parquet"))
        names = [name for name in self.quarantine.files(".parquet") if name in finished]
        files = (self.quarantine / name for name in names)
        return sum(pq.read_metadata(file.path, filesystem=file.arrow_filesystem).num_rows for file in files)

    def check_complete(self, shards: Sequence[ShardEntry]) -> None:
        """Check that this process sees the rows of all shards.

        Raises:
            MedFocusError: rows files are missing here, although workers have written them.
        """
        names = set(self.rows.files(".parquet"))
        if missing := sum(part_name(shard.key) not in names for shard in shards):
            raise MedFocusError(
                f"{self.rows.uri}: rows of {missing} of {len(shards)} shards were written and are not there; check that"
                " all nodes write to the same place, then start the same call again"
            )

    def commit(self, shard_key: str, rows: pa.Table, quarantined: pa.Table) -> None:
        """Write the output files of one shard. The shard is finished as soon as its rows file exists.

        A run that replaces earlier outputs removes the rows file first. If it is stopped before it has written the new
        one, the next run processes the shard again, so that no image is in both files or in none.

        Args:
            shard_key: key of the shard.
            rows: predictions or features of the shard.
            quarantined: its quarantined rows; without any, no quarantine file is left.

        Raises:
            StorageError: a file cannot be written.
        """
        name = part_name(shard_key)
        if self.replaces:
            (self.rows / name).delete()
        if quarantined.num_rows:
            (self.quarantine / name).write(records.encode(quarantined))
        else:
            (self.quarantine / name).delete()  # that an unfinished try may have left
        (self.rows / name).write(records.encode(rows))


def _differences(earlier: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings that differ, with the names of their sections before them."""
    names = []
    for key in sorted(earlier.keys() | current.keys()):
        old, new = earlier.get(key), current.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}")
    return names
