"""The manifest: the shards of an archive, with the number of rows and the digest of each."""

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
    """One shard of an archive.

    Args:
        name: file name below the prefix.
        rows: number of rows.
        bytes: size of the file in bytes.
        sha256: SHA-256 of the file, in hexadecimal; the digest that stands for the shard.
        labelled: number of rows with a label; None in a manifest of an earlier version, which does not count them.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    labelled: int | None = None

    @property
    def most_labelled(self) -> int:
        """Number of rows with a label; of all rows where the manifest does not count them."""
        return self.rows if self.labelled is None else self.labelled


@dataclass(frozen=True)
class Manifest:
    """The shards of an archive, sorted by name."""

    shards: tuple[ShardEntry, ...]

    @property
    def rows(self) -> int:
        """Number of rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the digests of all shards, in hexadecimal; it stands for the content of the archive."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def write_manifest(prefix: Location, shards: Sequence[ShardEntry]) -> Manifest:
    """Write the manifest of shards below a prefix, the last step of ``pack``: shards without one are unfinished."""
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
    """Read the manifest below a prefix.

    Raises:
        UsageError: there is no manifest, this version cannot read it, or its shards have no rows.
    """
    if not (prefix / FILE).exists():
        raise UsageError(
            f"{prefix.uri}: no {FILE}, so no finished shards; run medfocus pack into it, or correct the path"
        )
    try:
        content = (prefix / FILE).read_json()
        _check_version(content, prefix)
        manifest = Manifest(tuple(ShardEntry(**shard) for shard in content["shards"]))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{prefix.uri}: {FILE} is not a MedFocus manifest; run medfocus pack again") from error
    if not manifest.rows:
        raise UsageError(f"{prefix.uri}: the manifest names no image; run medfocus pack on a source that has some")
    return manifest


def _check_version(content: Mapping[str, Any], prefix: Location) -> None:
    if content["version"] != records.VERSION:
        raise UsageError(
            f"{prefix.uri}: shards of schema version {content['version']}, this is {records.VERSION}; pack them again"
        )
