"""Outputs by input shard: what is finished, and how a shard's rows are written so that it counts once.

A shard's outputs are named by the digest of the shard. Writing it again overwrites them; a shard whose rows
file is there is finished and is not read again. The quarantine file is written first, the rows file last.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline import records
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.manifest import Manifest, ShardEntry
from medfocus.pipeline.storage import Location

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
    """

    prefix: Location
    folder: str

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
            retry_quarantined: count shards with quarantined rows as unfinished; then a setting that changes no row but
                those may be another.

        Returns:
            The run's record, and the shards that are not finished.

        Raises:
            UsageError: the prefix holds rows made by other settings, or of shards that have changed since.
        """
        key = settings_key(settings)
        if overwrite:
            self.clear()
        record = self.prefix / RUN_FILE
        if record.exists():
            earlier = record.read_json()
            if earlier.get("key") != key:
                changed = _differences(earlier.get("settings", {}), settings)
                if not retry_quarantined or changed != ["max_pixels"]:
                    raise UsageError(
                        f"{self.prefix.uri}: holds rows made with another {', '.join(changed) or 'program'};"
                        " choose a new prefix or --overwrite"
                    )
                earlier |= {"key": key, "settings": dict(settings)}
                record.write_json(earlier)
        else:
            earlier = {"key": key, "settings": dict(settings), "finished": False}
            record.write_json(earlier)
        known = {part_name(shard.sha256) for shard in manifest.shards}
        finished = set(self.rows.files(".parquet"))
        if strangers := len(finished - known):
            raise UsageError(
                f"{self.prefix.uri}: holds rows of {strangers} shards that are not, or no longer, in SHARDS;"
                " choose a new prefix or --overwrite"
            )
        if retry_quarantined:
            for name in self.quarantine.files(".parquet"):
                (self.rows / name).delete()
                finished.discard(name)
        return earlier, [shard for shard in manifest.shards if part_name(shard.sha256) not in finished]

    def update(self, **entries: Any) -> None:
        """Put entries into the run's record."""
        record = self.prefix / RUN_FILE
        record.write_json(record.read_json() | entries)

    def clear(self) -> None:
        """Remove the run's record and all rows."""
        for place in (self.prefix / RUN_FILE, self.rows, self.quarantine):
            place.delete()

    def quarantined(self) -> int:
        """Quarantined rows of all finished shards, from the footers of the few files that have some."""
        finished = set(self.rows.files(".parquet"))
        names = [name for name in self.quarantine.files(".parquet") if name in finished]
        files = (self.quarantine / name for name in names)
        return sum(pq.read_metadata(file.path, filesystem=file.filesystem).num_rows for file in files)

    def commit(self, shard_sha256: str, rows: pa.Table, quarantined: pa.Table) -> None:
        """Write the outputs of one shard; from the moment the rows file is there, the shard is finished."""
        name = part_name(shard_sha256)
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
