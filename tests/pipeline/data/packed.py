"""A small archive, as ``pack`` leaves it: shards, their index, and a manifest."""

import hashlib
from collections.abc import Sequence

import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.index import PACKED, shard_name, write_portion
from medfocus.pipeline.data.manifest import Manifest, ShardEntry, write_manifest
from medfocus.pipeline.data.shards import read_file
from medfocus.pipeline.data.storage import Location

Row = tuple[str, str | None]  # image and patient


def write_shard(prefix: Location, name: str, rows: Sequence[Row], replaced: tuple[int, ...] = ()) -> ShardEntry:
    """Write a shard; images are labelled by the last letter of their name."""
    columns = {
        "image_id": [image for image, _ in rows],
        "patient_id": [patient for _, patient in rows],
        "image": [f"pixels of {image}".encode() for image, _ in rows],
        "media_type": ["image/png"] * len(rows),
        "label": [image[-1] for image, _ in rows],
        "source_uri": [image for image, _ in rows],
        "sha256": [hashlib.sha256(image.encode()).hexdigest() for image, _ in rows],
    }
    content = records.encode(records.shard_table(columns))
    (prefix / name).write(content)
    count = len(rows) - len(replaced)
    return ShardEntry(name, count, len(content), hashlib.sha256(content).hexdigest(), count, replaced)


def write_portions(prefix: Location, portions: dict[str, list[list[Row]]]) -> list[ShardEntry]:
    """Write the shards of portions and their index; returns the entries of the shards."""
    entries = []
    for portion, shards in portions.items():
        named = [(shard_name(portion, number), rows) for number, rows in enumerate(shards)]
        written = [write_shard(prefix, name, rows) for name, rows in named]
        items = [
            {
                **{"item": f"item {image}", "stamp": "1 2", "outcome": PACKED, "shard": name, "row": row},
                **{"image_id": image, "patient_id": patient, "first_day": 7},
            }
            for name, rows in named
            for row, (image, patient) in enumerate(rows)
        ]
        write_portion(prefix, portion, items, written, seconds=1.5)
        entries += written
    return entries


def write_archive(prefix: Location, portions: dict[str, list[list[Row]]]) -> Manifest:
    """Write an archive of portions."""
    return write_manifest(prefix, write_portions(prefix, portions), key_fingerprint="f")


def images(prefix: Location, manifest: Manifest) -> dict[str, str | None]:
    """The patient of each image that the manifest counts; an image that is there twice is an error."""
    tables = [shard.remaining(read_file(shard, prefix)) for shard in manifest.shards]
    assert [table.num_rows for table in tables] == [shard.rows for shard in manifest.shards]
    rows = [row for table in tables for row in table.select(["image_id", "patient_id"]).to_pylist()]
    patients = {row["image_id"]: row["patient_id"] for row in rows}
    assert len(patients) == len(rows)
    return patients


def stored_text(prefix: Location) -> bytes:
    """All that is stored below a prefix, with what is compressed in Parquet files as text."""
    parts = []
    for name in prefix.files(recursive=True):
        location = prefix / name
        parts.append(location.read())
        if name.endswith(".parquet"):
            parts.append(str(pq.read_table(location.path, filesystem=location.arrow_filesystem).to_pylist()).encode())
    return b"\n".join([*parts, *(name.encode() for name in prefix.files(recursive=True))])
