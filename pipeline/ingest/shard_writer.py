"""Writing one shard from the images that belong to it."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, StorageError
from medfocus.pipeline.ingest.source import EMPTY, Refusal, read_patiently, reason
from medfocus.stages.decode import media_type_of

# Reads of small objects wait for the network, not for a processor.
_READERS = 16
_MEDIA_TYPES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "jif": "jpeg", "tif": "tiff", "dib": "bmp", "": "unknown"}


@dataclass(frozen=True)
class ImageFile:
    """One image to pack.

    Args:
        image_id: unique in the archive.
        path: bytes of its place below the source, which need not be UTF-8.
        size: its bytes.
        label: None where it is not known, as are the next two.
        patient_id: pseudonym.
        site: where it was taken.
    """

    image_id: str
    path: bytes
    size: int
    label: str | None = None
    patient_id: str | None = None
    site: str | None = None

    def below(self, origin: Location) -> Location:
        """Where it is, below the source."""
        return origin / self.path.decode("utf-8", "surrogateescape")


def write_shard(plan: dict[str, Any], origin: Location, target: Location) -> dict[str, Any]:
    """Read the images of one shard and write it; an image that cannot be read costs itself only.

    Args:
        plan: ``name`` of the shard and ``images``, each the fields of an ``ImageFile``.
        origin: the source.
        target: prefix to write to.

    Returns:
        The fields of its manifest entry, and ``refused``, the images that could not be read, as JSON. With no ``rows``,
        no shard was written.

    Raises:
        AccessError: storage may not be used at all.
        ServiceError: storage does not answer.
        StorageError: the shard cannot be written.
    """
    images = [ImageFile(**image) for image in plan["images"]]
    with ThreadPoolExecutor(_READERS) as readers:
        results = list(readers.map(lambda image: _read(image, origin), images))
    refused = [result for result in results if isinstance(result, Refusal)]
    read = {image: result for image, result in zip(images, results, strict=True) if isinstance(result, bytes)}
    content = records.encode(_table(read, origin))
    if read:
        (target / plan["name"]).write(content)
    labelled = sum(image.label is not None for image in read)
    entry = ShardEntry(plan["name"], len(read), len(content), hashlib.sha256(content).hexdigest(), labelled)
    return asdict(entry) | {"refused": json.dumps([asdict(refusal) for refusal in refused])}


def _read(image: ImageFile, origin: Location) -> bytes | Refusal:
    """The content of an image, or why it cannot be packed."""
    location = image.below(origin)
    try:
        content = read_patiently(location)
    except (AccessError, ServiceError):
        raise
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            message = "the file was there when the source was listed, and is no longer"
            return Refusal(image.image_id, location.uri, "Vanished", message)
        return Refusal(image.image_id, location.uri, "Unreadable", reason(error, location))
    return content or Refusal(image.image_id, location.uri, *EMPTY)


def _table(read: Mapping[ImageFile, bytes], origin: Location) -> pa.Table:
    images, contents = list(read), list(read.values())
    return pa.table(
        {
            "image_id": [image.image_id for image in images],
            "image": contents,
            "media_type": [media_type_of(content) or _by_suffix(image.image_id) for image, content in read.items()],
            "label": [image.label for image in images],
            "patient_id": [image.patient_id for image in images],
            "site": [image.site for image in images],
            "source_uri": [image.below(origin).uri for image in images],
            "sha256": [hashlib.sha256(content).hexdigest() for content in contents],
        },
        schema=records.SHARD,
    )


def _by_suffix(name: str) -> str:
    """Media type that a file claims whose bytes are of none: decoding will say so."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    return "image/" + _MEDIA_TYPES.get(suffix, suffix)
