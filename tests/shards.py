"""Shards of files as they are: ``pack`` would leave out those that cannot be decoded."""

import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from medfocus.pipeline.data.storage import Location, locate
from medfocus.stages.decode import media_type_of


def write_shards(folder: Path, shards: Path, rows_per_shard: int) -> Manifest:
    """Write the files of a folder as shards, in an order that has nothing to do with their names."""
    files = sorted(folder.iterdir(), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    prefix = locate(str(shards), StorageSection())
    entries = []
    for number, start in enumerate(range(0, len(files), rows_per_shard)):
        contents = {file.name: file.read_bytes() for file in files[start : start + rows_per_shard]}
        entries.append(_write(prefix, f"shard-{number:06d}.parquet", contents))
    return write_manifest(prefix, entries)


def add_shard(contents: Mapping[str, bytes], shards: str | Path, labels: Mapping[str, str]) -> Manifest:
    """Add files, by name, some of which have a label, to shards that ``pack`` wrote, as one more shard."""
    prefix = locate(str(shards), StorageSection())
    earlier = read_manifest(prefix)
    entry = _write(prefix, "shard-added.parquet", contents, labels)
    return write_manifest(prefix, [*earlier.shards, entry], earlier=earlier, key_fingerprint=earlier.key_fingerprint)


def _write(
    prefix: Location, name: str, contents: Mapping[str, bytes], labels: Mapping[str, str] | None = None
) -> ShardEntry:
    labels = labels or {}
    guessed = {name: mimetypes.guess_type(name)[0] for name in contents}
    table = records.shard_table(
        {
            "image_id": list(contents),
            "image": list(contents.values()),
            "media_type": [media_type_of(content) or guessed[name] for name, content in contents.items()],
            "label": [labels.get(name) for name in contents],
            "source_uri": [f"file:{name}" for name in contents],
            "sha256": [hashlib.sha256(content).hexdigest() for content in contents.values()],
        }
    )
    encoded = records.encode(table)
    (prefix / name).write(encoded)
    return ShardEntry(name, len(contents), len(encoded), hashlib.sha256(encoded).hexdigest(), len(labels))
