"""The manifest: the shards of an archive, with the number of rows and the digest of each.

Each ``pack`` that adds to an archive commits a new version. A version is its file in ``manifests/``, which is written
once; of two calls that write the same version, one wins. ``manifest.json`` is a copy of the newest version.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import ConditionError, Location
from medfocus.pipeline.errors import MedFocusError, UsageError

FILE = "manifest.json"
VERSIONS = "manifests"


@dataclass(frozen=True)
class ShardEntry:
    """One shard of an archive.

    Args:
        name: file name below the prefix.
        rows: number of rows, without those that are replaced.
        bytes: size of the file in bytes.
        sha256: SHA-256 of the file, in hexadecimal.
        labelled: number of these rows with a label; None where it is not known.
        replaced: sorted numbers of the rows of the file that do not count any more: a newer row is in their place, or
            they are left out. The file keeps them.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    labelled: int | None = None
    replaced: tuple[int, ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "ShardEntry":
        """The entry with these fields, as JSON has them.

        Raises:
            KeyError, TypeError: fields are missing or unknown.
        """
        return cls(**{**fields, "replaced": tuple(fields.get("replaced", ()))})

    @property
    def most_labelled(self) -> int:
        """Number of rows with a label; of all rows where it is not known."""
        return self.rows if self.labelled is None else self.labelled

    @property
    def key(self) -> str:
        """What names the outputs of the shard: its digest, or where rows are replaced one of them and of the digest."""
        if not self.replaced:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {json.dumps(sorted(self.replaced))}".encode()).hexdigest()

    def remaining(self, table: pa.Table) -> pa.Table:
        """Rows of the file without those that are replaced.

        Args:
            table: all rows of the file, in its order.
        """
        if not self.replaced:
            return table
        kept = np.ones(table.num_rows, bool)
        kept[list(self.replaced)] = False
        return table.filter(pa.array(kept))


@dataclass(frozen=True)
class Manifest:
    """The shards of an archive, sorted by name.

    Args:
        shards: the shards.
        version: number of the version, from 1.
        archive: id of the archive, the same in all of its versions.
        created: time of the version in UTC, as ISO 8601.
        key_fingerprint: fingerprint of the key of the pseudonyms; None where nothing is a pseudonym.
    """

    shards: tuple[ShardEntry, ...]
    version: int = 1
    archive: str = ""
    created: str = ""
    key_fingerprint: str | None = None

    @property
    def rows(self) -> int:
        """Number of rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 of the keys of all shards, in hexadecimal; it stands for the content of the archive."""
        return hashlib.sha256("".join(shard.key for shard in self.shards).encode()).hexdigest()

    def to_json(self) -> bytes:
        """The content of the file."""
        content = {
            "record": "shard",
            "version": records.VERSION,
            "manifest_version": self.version,
            "archive": self.archive,
            "created": self.created,
            "key_fingerprint": self.key_fingerprint,
            "rows": self.rows,
            "shards": [asdict(shard) for shard in self.shards],
        }
        return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def write_manifest(
    prefix: Location,
    shards: Iterable[ShardEntry],
    *,
    earlier: Manifest | None = None,
    key_fingerprint: str | None = None,
) -> Manifest:
    """Commit a version of the manifest, the last step of ``pack``: shards that no version names are unfinished.

    Args:
        prefix: prefix of the shards.
        shards: all shards of the version, also those of earlier versions.
        earlier: the version that this one follows, as ``newest_manifest`` returns it; None for the first version.
        key_fingerprint: fingerprint of the key of the pseudonyms.

    Returns:
        The new version, which readers see from now on.

    Raises:
        MedFocusError: another call has committed a version since ``earlier``.
        StorageError: the manifest cannot be written.
    """
    manifest = Manifest(
        tuple(sorted(shards, key=lambda shard: shard.name)),
        version=earlier.version + 1 if earlier else 1,
        archive=earlier.archive if earlier else uuid.uuid4().hex,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        key_fingerprint=key_fingerprint,
    )
    content = manifest.to_json()
    if not _create(_version_file(prefix, manifest.version), content):
        raise MedFocusError(
            f"{prefix.uri}: another call has committed version {manifest.version} of the manifest in the meantime;"
            " start the same call again, which adds to that version"
        )
    _make_current(prefix, manifest.version, content)
    return manifest


def read_manifest(prefix: Location, version: int | None = None) -> Manifest:
    """Read the manifest below a prefix.

    Args:
        prefix: prefix of the shards.
        version: number of the version; None reads the newest one.

    Raises:
        UsageError: there is no such manifest, this program cannot read it, or its shards have no rows.
    """
    location = prefix / FILE if version is None else _version_file(prefix, version)
    if not location.exists():
        if version is not None:
            known = ", ".join(map(str, _versions(prefix))) or "none"
            raise UsageError(f"{prefix.uri}: no version {version} of the manifest; there is {known}")
        raise UsageError(
            f"{prefix.uri}: no {FILE}, so no finished shards; run medfocus pack into it, or correct the path"
        )
    manifest = _parse(location.read(), prefix)
    if not manifest.rows:
        raise UsageError(f"{prefix.uri}: the manifest names no image; run medfocus pack on a source that has some")
    return manifest


def newest_manifest(prefix: Location) -> Manifest | None:
    """The version that the next one follows; None where there is none. It may have no rows.

    A call that was stopped between the file of its version and ``manifest.json`` is brought to its end.

    Raises:
        UsageError: this program cannot read the manifest.
        StorageError: the manifest cannot be read or written.
    """
    versions = _versions(prefix)
    if not versions:
        return _parse((prefix / FILE).read(), prefix) if (prefix / FILE).exists() else None
    content = _version_file(prefix, versions[-1]).read()
    manifest = _parse(content, prefix)
    _make_current(prefix, manifest.version, content)
    return manifest


def _version_file(prefix: Location, version: int) -> Location:
    return prefix / VERSIONS / f"manifest-{version:06d}.json"


def _versions(prefix: Location) -> Sequence[int]:
    """Numbers of the versions below a prefix, sorted."""
    matches = (re.fullmatch(r"manifest-(\d+)\.json", name) for name in (prefix / VERSIONS).files(".json"))
    return sorted(int(match[1]) for match in matches if match)


def _make_current(prefix: Location, version: int, content: bytes) -> None:
    """Make ``manifest.json`` a copy of a version, unless it is one of a later version already."""
    current = prefix / FILE
    while True:
        if not current.exists():
            if _create(current, content):
                return
            continue
        there, stamp = current.read_version()
        if _parse(there, prefix).version >= version:
            return
        try:
            if current.replace(content, stamp):
                return
        except ConditionError:
            current.write(content)
            return


def _create(location: Location, content: bytes) -> bool:
    """Write a file if there is none; whether this call has written it."""
    try:
        return location.create(content)
    except ConditionError:
        log.warning(
            "%s: the storage service has no conditional writes; let only one medfocus pack at a time write here",
            location.uri,
        )
        if location.exists():
            return False
        location.write(content)
        return True


def _parse(content: bytes, prefix: Location) -> Manifest:
    """The manifest of a file.

    Raises:
        UsageError: this program cannot read it.
    """
    try:
        fields = json.loads(content)
        _check_version(fields, prefix)
        return Manifest(
            tuple(ShardEntry.of(shard) for shard in fields["shards"]),
            version=int(fields["manifest_version"]),
            archive=fields["archive"],
            created=fields["created"],
            key_fingerprint=fields["key_fingerprint"],
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{prefix.uri}: {FILE} is not a MedFocus manifest; run medfocus pack again") from error


def _check_version(content: Mapping[str, Any], prefix: Location) -> None:
    if content["version"] != records.VERSION:
        raise UsageError(
            f"{prefix.uri}: shards of schema version {content['version']}, this is {records.VERSION}; pack them again"
            " into a new prefix"
        )
