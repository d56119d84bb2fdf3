"""Outputs by input shard: what is finished, and how a shard's rows are written so that it counts once.

A shard's outputs are named by the digest of the shard. Writing it again overwrites them; a shard whose rows
file is there is finished and is not read again. The quarantine file is written first, the rows file last.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import Manifest, ShardEntry
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError, UsageError

RUN_FILE = "run.json"
PREDICTIONS, FEATURES, QUARANTINE = "predictions", "features", "quarantine"


def part_name(shard_sha256: str) -> str:
    return f"part-{shard_sha256[:32]}.parquet"


def settings_key(settings: Mapping[str, Any]) -> str:
    """What stands for everything that decides the outputs: SHA-256 of the settings as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Output:
    """A prefix that collects the rows of a run.

    Args:
        prefix: the command's output.
        folder: name below it of the folder with the rows (``predictions``, ``features``).
        replaces: shards that are finished may be written again.
    """

    prefix: Location
    folder: str
    replaces: bool = False

    @property
    def rows(self) -> Location:
        return self.prefix / self.folder

    @property
    def quarantine(self) -> Location:
        return self.prefix / QUARANTINE

    def begin(
        self,
        settings: Mapping[str, Any],
        manifest: Manifest,
        *,
        overwrite: bool = False,
        retry_quarantined: bool = False,
    ) -> tuple[dict[str, Any], list[ShardEntry]]:
        """Start or continue the run of these settings on this prefix.

        What is finished is known from one listing of the rows files; none is read.

        Args:
            settings: all that decides the rows.
            manifest: of the shards.
            overwrite: remove what is there first.
            retry_quarantined: take shards with quarantined rows again; each keeps its rows until it is written anew. A
                setting that changes no row but those may then be another.

        Returns:
            The run's record, and the shards to do. Where there are some, the record says that the run is unfinished.

        Raises:
            UsageError: the prefix holds rows made by other settings, or of shards that have changed since, or rows that
                no record tells of.
        """
        if overwrite:
            self.clear()
        record = self._record(settings, may_retry=retry_quarantined)
        finished = set(self.rows.files(".parquet"))
        if strangers := len(finished - {part_name(shard.sha256) for shard in manifest.shards}):
            raise UsageError(
                f"{self.prefix.uri}: holds rows of {strangers} shards that are not, or no longer, in SHARDS;"
                " choose a new prefix or --overwrite"
            )
        if retry_quarantined:
            finished -= set(self.quarantine.files(".parquet"))
        todo = [shard for shard in manifest.shards if part_name(shard.sha256) not in finished]
        if todo or "finished" not in record:
            record["finished"] = False
        self._write_record(record)  # before any row changes: who reads the rows meanwhile is told
        return record, todo

    def _record(self, settings: Mapping[str, Any], *, may_retry: bool) -> dict[str, Any]:
        """The record of the earlier run with these settings; a new one where the prefix is empty."""
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
        """The run's record.

        Raises:
            UsageError: it is not one.
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
        """Put entries into the run's record."""
        self._write_record(self.read_record() | entries)

    def clear(self) -> None:
        """Remove all rows, then the run's record: a part of the rows never counts as all of them."""
        if (self.prefix / RUN_FILE).exists():
            self._write_record({"emptied": True, "finished": False})
        for place in (self.rows, self.quarantine, self.prefix / RUN_FILE):
            place.delete()

    def quarantined(self) -> int:
        """Quarantined rows of all finished shards, from the footers of the few files that have some."""
        finished = set(self.rows.files(".parquet"))
        names = [name for name in self.quarantine.files(".parquet") if name in finished]
        files = (self.quarantine / name for name in names)
        return sum(pq.read_metadata(file.path, filesystem=file.filesystem).num_rows for file in files)

    def check_complete(self, shards: Sequence[ShardEntry]) -> None:
        """Raise MedFocusError if rows of a shard are not to be seen from here, whatever its writer said."""
        seen = set(self.rows.files(".parquet"))
        if missing := sum(part_name(shard.sha256) not in seen for shard in shards):
            raise MedFocusError(
                f"{self.rows.uri}: rows of {missing} of {len(shards)} shards were written and are not there; check that"
                " all nodes write to the same place, then start the same call again"
            )

    def commit(self, shard_sha256: str, rows: pa.Table, quarantined: pa.Table) -> None:
        """Write the outputs of one shard; from the moment the rows file is there, the shard is finished.

        Where the run replaces earlier outputs, the shard is unfinished from here to there: a run that is stopped in
        between takes the shard again, and no image is in both files or in none.
        """
        name = part_name(shard_sha256)
        if self.replaces:
            (self.rows / name).delete()
        if quarantined.num_rows:
            (self.quarantine / name).write(records.encode(quarantined))
        else:
            (self.quarantine / name).delete()  # of an attempt that did not finish
        (self.rows / name).write(records.encode(rows))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}")
    return names
