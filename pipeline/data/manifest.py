"""The manifest: which shards an archive has, how many rows each, and the digest of its content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError

FILE = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard.

    Args:
        name: file name below the prefix.
        rows: how many it has.
        bytes: of the file.
        sha256: of its content.
        labelled: rows with a label; None in a manifest that was written before they were counted.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    labelled: int | None = None

    @property
    def most_labelled(self) -> int:
        """Rows with a label; all rows where they were not counted."""
        return self.rows if self.labelled is None else self.labelled


@dataclass(frozen=True)
class Manifest:
    """All shards of an archive, in order of their names."""

    shards: tuple[ShardEntry, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 that stands for the content of the whole archive."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def write_manifest(prefix: Location, shards: Sequence[ShardEntry]) -> Manifest:
    """Write the manifest; the last act of ``pack``, so that shards without one are known to be unfinished."""
    manifest = Manifest(tuple(sorted(shards, key=lambda shard: shard.name)))
    content = {
        "record": "shard",
        "version": records.VERSION,
        "rows": manifest.rows,
        "shards": [asdict(shard) for shard in manifest.shards],
    }
    (prefix / FILE).write_json(content)
    return manifest


def read_manifest(prefix: Location) -> Manifest:
    """The manifest below a prefix.

    Raises:
        UsageError: there is none, or it is not one this version reads, or it names no shard.
    """
    if not (prefix / FILE).exists():
        raise UsageError(
            f"{prefix.uri}: no {FILE}, so no finished shards; run medfocus pack into it, or correct the path"
        )
    try:
        content = (prefix / FILE).read_json()
        manifest = Manifest(tuple(ShardEntry(**shard) for shard in _checked(content, prefix)["shards"]))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{prefix.uri}: {FILE} is not a MedFocus manifest; run medfocus pack again") from error
    if not manifest.rows:
        raise UsageError(f"{prefix.uri}: the manifest names no image; run medfocus pack on a source that has some")
    return manifest


def _checked(content: Mapping[str, Any], prefix: Location) -> Mapping[str, Any]:
    if content["version"] != records.VERSION:
        raise UsageError(
            f"{prefix.uri}: shards of schema version {content['version']}, this is {records.VERSION}; pack them again"
        )
    return content
