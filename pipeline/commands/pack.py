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

# Images that cannot be packed are rows of this file.
_QUARANTINE_FILE = "pack.parquet"


def run(config: Config, source: str, shards: str, labels: str | None) -> dict[str, Any]:
    """Pack the images of a folder into shards of bounded size, and write the manifest last.

    Images are found by their bytes. What cannot be packed is in ``quarantine/`` below the shards, with its reason.

    Args:
        config: ``pack`` bounds the shards.
        source: folder or prefix of images; without ``labels`` folders name the classes (``folder_classes``).
        shards: prefix to write to; it must not hold a manifest yet.
        labels: label file (``labels``) whose names (``label_join``) are relative to ``source``.

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
        manifest, unread = _write(list(_plan(images, config.pack)), origin, target, len(images))
        refused += unread
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
    """The images to pack with what is known of them, and what cannot be packed; what is left out is in the log."""
    if not origin.is_folder():
        raise UsageError(f"{origin.uri}: no such folder or prefix; correct SOURCE")
    found = find_images(origin)
    if not found.images:
        raise UsageError(f"{origin.uri}: holds no image that can be packed ({found.described()}); correct SOURCE")
    described = _by_folders(found) if labels is None else _by_labels(found, origin, locate(labels, config.storage))
    found.log()
    # In an order that has nothing to do with the names: any few shards are then a fair sample of the archive.
    return sorted(described, key=lambda image: hashlib.sha256(image.image_id.encode()).digest()), found.refused


def _by_folders(found: Source) -> list[ImageFile]:
    classes = folder_classes([decoded(image.path) for image in found.images])
    classes.log()
    return [
        ImageFile(image.image_id, image.path, image.size, label)
        for image, label in zip(found.images, classes.classes, strict=True)
    ]


def _by_labels(found: Source, origin: Location, location: Location) -> list[ImageFile]:
    labels = read_labels(location)
    known = [image.image_id for image in found.images]
    # A label of a file that cannot be packed is no wrong name.
    join = join_labels(
        labels, lambda: known + [refusal.image_id for refusal in found.refused], (origin.uri, origin.path)
    )
    if not join.rows:
        raise UsageError(
            f"{labels.uri}: names no image below {origin.uri} (read as {labels.format}); write the path of each image"
            f" below SOURCE into its column {labels.columns[0]}"
        )
    labels.log()
    join.log(known)
    described = []
    for image in found.images:
        row = join.rows.get(image.image_id)
        what = (row.label, row.patient_id, row.site) if row else ()
        described.append(ImageFile(image.image_id, image.path, image.size, *what))
    return described


def _plan(images: Sequence[ImageFile], section: PackSection) -> Iterator[dict[str, Any]]:
    """Cut the list of images into shards of bounded rows and bytes; one larger image is a shard by itself."""
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


def _write(
    plans: list[dict[str, Any]], origin: Location, target: Location, images: int
) -> tuple[Manifest, list[Refusal]]:
    """Write the shards; returns what the manifest will be, and the images that could not be read."""
    dataset = ray.data.from_items(plans, override_num_blocks=len(plans)).map(
        write_shard, fn_args=(origin, target), num_cpus=0.5
    )
    entries, unread = [], []
    with progress("pack", images, 0, runs.log_progress) as shown:
        for row in dataset.iter_rows():
            refused = [Refusal(**refusal) for refusal in json.loads(row.pop("refused"))]
            unread += refused
            entry = ShardEntry(**row)
            if entry.rows:
                entries.append(entry)
            shown.add(entry.rows + len(refused), len(refused))
    seen = set(target.files(".parquet"))
    if missing := sum(entry.name not in seen for entry in entries):
        raise MedFocusError(
            f"{target.uri}: {missing} of {len(entries)} shards were written and are not there; check that all nodes"
            " write to the same place"
        )
    return Manifest(tuple(entries)), unread


def _write_quarantine(target: Location, refused: Sequence[Refusal]) -> None:
    """Write what cannot be packed; where there is nothing, remove what an earlier call that did not finish left."""
    file = target / QUARANTINE / _QUARANTINE_FILE
    if not refused:
        file.delete()
        return
    rows = [asdict(refusal) | {"stage": "pack"} for refusal in refused]
    file.write(records.encode(pa.Table.from_pylist(rows, schema=records.QUARANTINE)))
