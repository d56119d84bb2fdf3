"""``medfocus pack``: images to shards and a manifest."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs as pafs
import ray

from medfocus.cluster.connect import connected
from medfocus.pipeline import tracking
from medfocus.pipeline.config import Config, PackSection
from medfocus.pipeline.errors import MedFocusError, UsageError, before_start
from medfocus.pipeline.logs import event, log, progress
from medfocus.pipeline.manifest import FILE, ShardEntry, write_manifest
from medfocus.pipeline.shard_writer import ImageFile, write_shard
from medfocus.pipeline.shared_paths import check_shared
from medfocus.pipeline.storage import Location, locate

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


def run(config: Config, source: str, shards: str, labels: str | None) -> dict[str, Any]:
    """Pack the images of a folder into shards of bounded size, and write the manifest last.

    Args:
        config: ``pack`` bounds the shards.
        source: folder or prefix of images; without ``labels`` the first folder below it names the class, and an
            image directly in it has none.
        shards: prefix to write to; it must not hold a manifest yet.
        labels: CSV file with the columns ``file`` (relative to ``source``) and ``label``, and, if known,
            ``patient_id`` (a pseudonym) and ``site``.

    Raises:
        UsageError: there are no images, the labels name none of them, or ``shards`` is taken.
    """
    with before_start():
        origin, target = locate(source, config.storage), locate(shards, config.storage)
        if (target / FILE).exists():
            raise UsageError(f"{target.uri}: holds packed shards already; choose a new prefix or remove them")
        images = _find(origin, labels, config)
    plans = list(_plan(images, config.pack))
    with tracking.run("pack", config) as active, connected(config.cluster.address, config.cluster.cpus):
        check_shared(config.storage, read=[origin / images[0].name], written=[target])
        entries = _write(plans, origin, target, len(images))
        manifest = write_manifest(target, entries)
        tracking.log_dataset("shards", manifest.digest, "pack")
        summary = {
            "rows": manifest.rows,
            "shards": len(manifest.shards),
            "labelled": sum(image.label is not None for image in images),
            "bytes": sum(shard.bytes for shard in manifest.shards),
        }
        tracking.log_metrics(summary)
        event("packed", **summary)
        return summary | {"digest": manifest.digest, "mlflow_run_id": active.info.run_id}


def _find(origin: Location, labels: str | None, config: Config) -> list[ImageFile]:
    """The images to pack; what is left out is counted in the log."""
    if not origin.is_folder():
        raise UsageError(f"{origin.uri}: no such folder or prefix; correct SOURCE")
    selector = pafs.FileSelector(origin.path, recursive=True)
    prefix = origin.path.rstrip("/") + "/"
    found = [info for info in origin.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    sizes = {info.path.removeprefix(prefix): info.size for info in found}
    table = _read_labels(locate(labels, config.storage)) if labels is not None else None
    if table is not None and not any(name in sizes for name in table):
        example = next(iter(table), "nothing")
        raise UsageError(f"{labels}: names no image below {origin.uri} (it names {example}); correct the column file")
    named = table or {}
    # In an order that has nothing to do with the names: any few shards are then a fair sample of the archive.
    chosen = sorted((name for name in sizes if name in named or _is_image(name)), key=_scattered)
    if not chosen:
        raise UsageError(f"{origin.uri}: holds no image ({', '.join(sorted(SUFFIXES))}); correct SOURCE")
    left_out = Counter(PurePosixPath(name).suffix or "no suffix" for name in sizes.keys() - set(chosen))
    if left_out:
        log.warning("%d files are no images by their suffix and are left out: %s", left_out.total(), dict(left_out))
    if missing := len(named.keys() - sizes.keys()):
        log.warning("%d labels name files that are not there and are left out", missing)
    return [_describe(name, sizes[name], table) for name in chosen]


def _scattered(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _describe(name: str, size: int, table: dict[str, dict[str, str]] | None) -> ImageFile:
    if table is None:
        parts = PurePosixPath(name).parts
        return ImageFile(name, size, parts[0] if len(parts) > 1 else None, None, None)
    row = table.get(name, {})
    return ImageFile(name, size, row.get("label") or None, row.get("patient_id") or None, row.get("site") or None)


def _read_labels(location: Location) -> dict[str, dict[str, str]]:
    if not location.exists():
        raise UsageError(f"{location.uri}: no such label file; correct --labels")
    try:
        text = location.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{location.uri}: not a UTF-8 text file; save it as CSV in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = {"file", "label"} - set(reader.fieldnames or ())
    if missing:
        raise UsageError(f"{location.uri}: column {sorted(missing)[0]} is missing; the header must name file and label")
    table: dict[str, dict[str, str]] = {}
    for line, row in enumerate(reader, start=2):
        if row["file"] in table:
            raise UsageError(f"{location.uri}: line {line} names a file a second time; keep one line a file")
        table[row["file"]] = row
    return table


def _plan(images: Sequence[ImageFile], section: PackSection) -> Iterator[dict[str, Any]]:
    """Cut the list of images into shards of bounded rows and bytes; one larger image is a shard by itself."""
    members: list[ImageFile] = []
    size = number = 0
    for image in images:
        full = len(members) == section.rows_per_shard or size + image.bytes > section.bytes_per_shard
        if members and full:
            yield {"name": f"shard-{number:06d}.parquet", "images": [asdict(member) for member in members]}
            members, size, number = [], 0, number + 1
        members.append(image)
        size += image.bytes
    yield {"name": f"shard-{number:06d}.parquet", "images": [asdict(member) for member in members]}


def _write(plans: list[dict[str, Any]], origin: Location, target: Location, images: int) -> list[ShardEntry]:
    dataset = ray.data.from_items(plans, override_num_blocks=len(plans)).map(
        write_shard, fn_args=(origin, target), num_cpus=0.5
    )
    entries = []
    with progress("pack", images, 0, tracking.log_progress) as shown:
        for row in dataset.iter_rows():
            entries.append(ShardEntry(**row))
            shown.add(row["rows"], 0)
    seen = set(target.files(".parquet"))
    if missing := sum(entry.name not in seen for entry in entries):
        raise MedFocusError(
            f"{target.uri}: {missing} of {len(entries)} shards were written and are not there; check that all nodes"
            " write to the same place"
        )
    return entries
