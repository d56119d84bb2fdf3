"""``medfocus pack``: images to shards and a manifest."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from medfocus.cluster.connect import connected
from medfocus.pipeline.config import Config, PackSection
from medfocus.pipeline.console.logs import event, log, progress
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import QUARANTINE
from medfocus.pipeline.data.local_tree import decoded
from medfocus.pipeline.data.manifest import FILE, Manifest, ShardEntry, write_manifest
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import MedFocusError, UsageError, before_start
from medfocus.pipeline.ingest.shard_writer import ImageFile, write_shard
from medfocus.pipeline.ingest.source import Refusal, Source, find_images
from medfocus.pipeline.labels.folders import folder_classes
from medfocus.pipeline.labels.join import join_labels
from medfocus.pipeline.labels.reader import read_labels
from medfocus.pipeline.tracking import runs

# Name of the file with the images that cannot be packed.
_QUARANTINE_FILE = "pack.parquet"


def run(config: Config, source: str, shards: str, labels: str | None) -> dict[str, Any]:
    """Pack the images of a folder into shards of bounded size, and write the manifest last.

    Images are found by their bytes. Files that cannot be packed are in ``quarantine/`` below the shards, with the
    reason.

    Args:
        config: the configuration; ``pack`` bounds the shards.
        source: folder or prefix of images.
        shards: prefix to write to; it must not hold a manifest yet.
        labels: label file (``labels.reader``) whose names (``labels.join``) are relative to ``source``; None takes the
            class of each image from its folder (``labels.folders``).

    Returns:
        ``rows`` and ``shards`` written, ``labelled`` rows, ``quarantined`` files, ``bytes`` of the shards, their
        ``digest``, and the ``mlflow_run_id``.

    Raises:
        UsageError: there are no images, the labels name none of them or contradict themselves, or ``shards`` is taken.
        MedFocusError: not one of the images can be read.
    """
    with before_start():
        origin, target = locate(source, config.storage), locate(shards, config.storage)
        if (target / FILE).exists():
            raise UsageError(f"{target.uri}: holds packed shards already; choose a new prefix or remove them")
        images, refused = _find(origin, labels, config)
    with runs.run("pack", config) as active, connected(config.cluster.address, config.cluster.cpus):
        check_shared(config.storage, read=[images[0].below(origin)], written=[target])
        manifest, unreadable = _write_shards(list(_assign_shards(images, config.pack)), origin, target, len(images))
        refused += unreadable
        _write_quarantine(target, refused)
        if not manifest.rows:
            raise MedFocusError(
                f"{origin.uri}: none of {len(images)} images can be read; medfocus quarantine {target.uri} tells why"
            )
        manifest = write_manifest(target, manifest.shards)
        runs.log_dataset("shards", manifest.digest, "pack")
        summary = {
            "rows": manifest.rows,
            "shards": len(manifest.shards),
            "labelled": sum(shard.labelled or 0 for shard in manifest.shards),
            "quarantined": len(refused),
            "bytes": sum(shard.bytes for shard in manifest.shards),
        }
        runs.log_metrics(summary)
        if refused:
            log.warning("%d files cannot be packed; medfocus quarantine %s tells why", len(refused), target.uri)
        event("packed", **summary)
        return summary | {"digest": manifest.digest, "mlflow_run_id": active.info.run_id}


def _find(origin: Location, labels: str | None, config: Config) -> tuple[list[ImageFile], list[Refusal]]:
    """The images to pack with their labels, and the files that cannot be packed; logs what is left out."""
    if not origin.is_folder():
        raise UsageError(f"{origin.uri}: no such folder or prefix; correct SOURCE")
    source = find_images(origin)
    if not source.images:
        raise UsageError(f"{origin.uri}: holds no image that can be packed ({source.format_rest()}); correct SOURCE")
    if labels is None:
        images = _label_by_folders(source)
    else:
        images = _label_by_file(source, origin, locate(labels, config.storage))
    source.log()
    # In an order that has nothing to do with the names: a few shards are then a fair sample of the archive.
    return sorted(images, key=lambda image: hashlib.sha256(image.image_id.encode()).digest()), source.refused


def _label_by_folders(source: Source) -> list[ImageFile]:
    classes = folder_classes([decoded(image.path) for image in source.images])
    classes.log()
    return [
        ImageFile(image.image_id, image.path, image.size, label)
        for image, label in zip(source.images, classes.classes, strict=True)
    ]


def _label_by_file(source: Source, origin: Location, location: Location) -> list[ImageFile]:
    labels = read_labels(location)
    packable = [image.image_id for image in source.images]
    # A name of a file that cannot be packed is no wrong name.
    names = packable + [refusal.image_id for refusal in source.refused]
    join = join_labels(labels, lambda: names, (origin.uri, origin.path))
    if not join.rows:
        raise UsageError(
            f"{labels.uri}: names no image below {origin.uri} (read as {labels.format}); write the path of each image"
            f" below SOURCE into its column {labels.columns[0]}"
        )
    labels.log()
    join.log(packable)
    images = []
    for image in source.images:
        row = join.rows.get(image.image_id)
        known = (row.label, row.patient_id, row.site) if row else ()
        images.append(ImageFile(image.image_id, image.path, image.size, *known))
    return images


def _assign_shards(images: Sequence[ImageFile], section: PackSection) -> Iterator[dict[str, Any]]:
    """Cut the list of images into shards of bounded rows and bytes; a larger image is a shard by itself."""
    members: list[ImageFile] = []
    size = number = 0
    for image in images:
        full = len(members) == section.rows_per_shard or size + image.size > section.bytes_per_shard
        if members and full:
            yield {"name": f"shard-{number:06d}.parquet", "images": [asdict(member) for member in members]}
            members, size, number = [], 0, number + 1
        members.append(image)
        size += image.size
    yield {"name": f"shard-{number:06d}.parquet", "images": [asdict(member) for member in members]}


def _write_shards(
    shards: list[dict[str, Any]], origin: Location, target: Location, images: int
) -> tuple[Manifest, list[Refusal]]:
    """Write the shards; returns their manifest, and the images that cannot be read.

    Args:
        shards: as ``write_shard`` takes them.
        origin: the source.
        target: prefix to write to.
        images: number of all images, for the progress.
    """
    dataset = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        write_shard, fn_args=(origin, target), num_cpus=0.5
    )
    entries, unreadable = [], []
    with progress("pack", images, 0, runs.log_progress) as counter:
        for row in dataset.iter_rows():
            refused = [Refusal(**refusal) for refusal in json.loads(row.pop("refused"))]
            unreadable += refused
            entry = ShardEntry(**row)
            if entry.rows:
                entries.append(entry)
            counter.add(entry.rows + len(refused), len(refused))
    files = set(target.files(".parquet"))
    if missing := sum(entry.name not in files for entry in entries):
        raise MedFocusError(
            f"{target.uri}: {missing} of {len(entries)} shards were written and are not there; check that all nodes"
            " write to the same place"
        )
    return Manifest(tuple(entries)), unreadable


def _write_quarantine(target: Location, refused: Sequence[Refusal]) -> None:
    """Write the files that cannot be packed. Where there are none, remove the file of an earlier unfinished call."""
    file = target / QUARANTINE / _QUARANTINE_FILE
    if not refused:
        file.delete()
        return
    rows = [asdict(refusal) | {"stage": "pack"} for refusal in refused]
    file.write(records.encode(pa.Table.from_pylist(rows, schema=records.QUARANTINE)))
