"""Writes one shard from its images."""

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
from medfocus.pipeline.ingest.source import EMPTY, Refusal, read_with_retries, reason
from medfocus.stages.decode import media_type_of

# Reads of small objects wait for the network, not for a processor.
_READERS = 16
_MEDIA_TYPES = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "jif": "jpeg", "tif": "tiff", "dib": "bmp", "": "unknown"}


@dataclass(frozen=True)
class ImageFile:
    """One image to pack.

    Args:
        image_id: unique in the archive.
        path: path below the source as bytes, which need not be UTF-8.
        size: size in bytes.
        label: class; None where it is not known.
        patient_id: pseudonym; None where it is not known.
        site: where the image was taken; None where it is not known.
    """

    image_id: str
    path: bytes
    size: int
    label: str | None = None
    patient_id: str | None = None
    site: str | None = None

    def below(self, origin: Location) -> Location:
        """Where the image is, below a source."""
        return origin / self.path.decode("utf-8", "surrogateescape")


def write_shard(shard: dict[str, Any], origin: Location, target: Location) -> dict[str, Any]:
    """Read the images of one shard and write it. Images that cannot be read are left out and returned.

    Args:
        shard: ``name`` of the shard and ``images``, each the fields of an ``ImageFile``.
        origin: the source.
        target: prefix to write to.

    Returns:
        The fields of the shard's manifest entry, and ``refused``, the images that cannot be read, as JSON. Where
        ``rows`` is 0, no shard was written.

    Raises:
        AccessError: storage refuses the credentials.
        ServiceError: storage does not answer.
        StorageError: the shard cannot be written.
    """
    images = [ImageFile(**image) for image in shard["images"]]
    with ThreadPoolExecutor(_READERS) as readers:
        results = list(readers.map(lambda image: _read(image, origin), images))
    refused = [result for result in results if isinstance(result, Refusal)]
    contents = {image: result for image, result in zip(images, results, strict=True) if isinstance(result, bytes)}
    file = records.encode(_table(contents, origin))
    if contents:
        (target / shard["name"]).write(file)
    labelled = sum(image.label is not None for image in contents)
    entry = ShardEntry(shard["name"], len(contents), len(file), hashlib.sha256(file).hexdigest(), labelled)
    return asdict(entry) | {"refused": json.dumps([asdict(refusal) for refusal in refused])}


def _read(image: ImageFile, origin: Location) -> bytes | Refusal:
    """The content of an image, or a refusal where it cannot be packed."""
    location = image.below(origin)
    try:
        content = read_with_retries(location)
    except (AccessError, ServiceError):
        raise
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            message = "the file was there when the source was listed, and is no longer"
            return Refusal(image.image_id, location.uri, "Vanished", message)
        return Refusal(image.image_id, location.uri, "Unreadable", reason(error, location))
    return content or Refusal(image.image_id, location.uri, *EMPTY)


def _table(contents: Mapping[ImageFile, bytes], origin: Location) -> pa.Table:
    """The rows of a shard, from the content of each image."""
    images = list(contents)
    return pa.table(
        {
            "image_id": [image.image_id for image in images],
            "image": list(contents.values()),
            "media_type": [media_type_of(content) or _by_suffix(image.image_id) for image, content in contents.items()],
            "label": [image.label for image in images],
            "patient_id": [image.patient_id for image in images],
            "site": [image.site for image in images],
            "source_uri": [image.below(origin).uri for image in images],
            "sha256": [hashlib.sha256(content).hexdigest() for content in contents.values()],
        },
        schema=records.SHARD,
    )


def _by_suffix(name: str) -> str:
    """Media type by the suffix of a name, for bytes of no known format; decoding refuses them later."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    return "image/" + _MEDIA_TYPES.get(suffix, suffix)
