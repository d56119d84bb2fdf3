"""Reads the labels that predictions are compared with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import FILE, read_manifest
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.data.tables import each_of, read_columns
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.join import join_labels
from medfocus.pipeline.labels.reader import normal_form, read_labels


@dataclass(frozen=True)
class Truth:
    """The labels of images.

    Args:
        rows: row of each image by its ``image_id``.
        codes: int64 [rows], label of each row as an index into ``names``.
        names: the different labels, sorted.
        digest: SHA-256 of the manifest or of the label file.
        uri: place of the labels, for messages.
        unpredicted: number of labels in a label file that name no predicted image, or more than one; they have no row.
    """

    rows: dict[str, int]
    codes: np.ndarray
    names: list[str]
    digest: str
    uri: str
    unpredicted: int = 0


def read_truth(location: Location, predictions: Location) -> Truth:
    """Read the labels of shards or of a label file; rows without a label are left out.

    Args:
        location: prefix of shards, or a label file.
        predictions: folder with the files of predictions; names in a label file are matched with their images.

    Raises:
        UsageError: the place holds neither shards nor a label file, or no label, or two labels of one image.
        StorageError: a file cannot be read.
    """
    if (location / FILE).exists():
        manifest = read_manifest(location)
        table = _shard_labels([location / shard.name for shard in manifest.shards]).drop_null()
        pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
        return _build_truth(pairs, manifest.digest, location.uri)
    if not location.exists() or location.is_folder():
        raise UsageError(f"{location.uri}: neither shards nor a label file; correct --labels")
    file = read_labels(location)
    if not any(row.label is not None for row in file.rows):
        raise UsageError(
            f"{location.uri}: holds no label (read as {file.format}); give labelled shards or a label file"
        )
    join = join_labels(file, lambda: _predicted_images(predictions))
    if join.rows:
        file.log()
        join.log()
    labelled = ((image, row.label) for image, row in join.rows.items() if row.label is not None)
    return replace(_build_truth(labelled, file.digest, file.uri), unpredicted=join.absent + len(join.ambiguous))


def _build_truth(pairs: Iterable[tuple[str, str]], digest: str, uri: str) -> Truth:
    """Labels by image; spellings of a label that differ in blanks or Unicode form are the same label."""
    label_of_image: dict[str, str] = {}
    for image, label in pairs:
        if label_of_image.setdefault(image, normal_form(label)) != normal_form(label):
            raise UsageError(f"{uri}: gives one image two labels; keep one of them")
    names = sorted(set(label_of_image.values()))
    index = {name: number for number, name in enumerate(names)}
    codes = np.fromiter((index[label] for label in label_of_image.values()), np.int64, len(label_of_image))
    return Truth({image: row for row, image in enumerate(label_of_image)}, codes, names, digest, uri)


def _shard_labels(shards: Sequence[Location]) -> pa.Table:
    """The columns ``image_id`` and ``label`` of all shards."""
    return pa.concat_tables(each_of(shards, lambda shard: read_columns(shard, records.SHARD, ["image_id", "label"])))


def _predicted_images(predictions: Location) -> Iterator[str]:
    """The ``image_id`` of every prediction, file by file."""
    files = [predictions / name for name in predictions.files(".parquet")]
    for table in each_of(files, lambda file: read_columns(file, records.PREDICTION, ["image_id"])):
        yield from table["image_id"].to_pylist()
