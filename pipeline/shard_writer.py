"""Writing one shard from the images that belong to it."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from medfocus.pipeline import records
from medfocus.pipeline.manifest import ShardEntry
from medfocus.pipeline.storage import Location
from medfocus.stages.decode import media_type_of

# Reads of small objects wait for the network, not for a processor.
_READERS = 16


@dataclass(frozen=True)
class ImageFile:
    """One image to pack: its place below the source (also its ``image_id``), size in bytes, and what is known of it."""

    name: str
    bytes: int
    label: str | None
    patient_id: str | None
    site: str | None


def write_shard(plan: dict[str, Any], origin: Location, target: Location) -> dict[str, Any]:
    """Read the images of one shard and write it; returns its manifest entry."""
    images = [ImageFile(**image) for image in plan["images"]]
    with ThreadPoolExecutor(_READERS) as readers:
        contents = list(readers.map(lambda image: (origin / image.name).read(), images))
    table = pa.table(
        {
            "image_id": [image.name for image in images],
            "image": contents,
            "media_type": [
                media_type_of(content) or _by_suffix(image.name)
                for image, content in zip(images, contents, strict=True)
            ],
            "label": [image.label for image in images],
            "patient_id": [image.patient_id for image in images],
            "site": [image.site for image in images],
            "source_uri": [(origin / image.name).uri for image in images],
            "sha256": [hashlib.sha256(content).hexdigest() for content in contents],
        },
        schema=records.SHARD,
    )
    content = records.encode(table)
    (target / plan["name"]).write(content)
    digest = hashlib.sha256(content).hexdigest()
    labelled = sum(image.label is not None for image in images)
    return asdict(ShardEntry(plan["name"], len(images), len(content), digest, labelled))


def _by_suffix(name: str) -> str:
    """Media type that a file claims whose bytes are of none: decoding will say so."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    return "image/" + {"jpg": "jpeg", "tif": "tiff", "": "unknown"}.get(suffix, suffix)
