"""Reads the labels that predictions are compared with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import FILE, ShardEntry, read_manifest
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.data.tables import each_of, read_columns
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.class_mapping import ClassMapping
from medfocus.pipeline.labels.items import Item, ItemNames, Pseudonym, keep_text
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


@dataclass(frozen=True)
class Naming:
    """How label files name the images of an archive, whose names and ids may be pseudonyms.

    Args:
        pseudonym: gives the pseudonym of an id.
        item_names: gives the names that an item can have by its path below the source; None where names are paths.
        item_of: gives the name of the item that an image is of, by its ``image_id``: a file may have several images.
        mapping: maps the classes of label files.
    """

    pseudonym: Pseudonym = keep_text
    item_names: ItemNames | None = None
    item_of: Callable[[str], str] = str
    mapping: ClassMapping = field(default_factory=lambda: ClassMapping({}))


def read_truth(
    location: Location, predictions: Location, naming: Naming | None = None, split: str | None = None
) -> Truth:
    """Read the labels of shards or of a label file; rows without a label are left out.

    Args:
        location: prefix of shards, or a label file.
        predictions: folder with the files of predictions; names in a label file are matched with their images.
        naming: how a label file names the images; None where it has their ``image_id`` and their patients' pseudonyms.
        split: the split whose labels are read; None reads all.

    Raises:
        UsageError: the place holds neither shards nor a label file, or no label, or none of the split, or two labels of
            one image.
        StorageError: a file cannot be read.
    """
    if (location / FILE).exists():
        return _read_shards(location, split)
    if not location.exists() or location.is_folder():
        raise UsageError(f"{location.uri}: neither shards nor a label file; correct --labels")
    return _read_file(location, predictions, naming or Naming(), split)


def _read_shards(location: Location, split: str | None) -> Truth:
    """The labels of shards, or of one split of theirs."""
    manifest = read_manifest(location)
    table = _shard_labels(location, manifest.shards)
    table = table.filter(pc.is_valid(table["label"]))
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
        if not table.num_rows:
            raise UsageError(f"{location.uri}: no labelled image is of the split {split}; correct --split")
    pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return _build_truth(pairs, manifest.digest, location.uri)


def _read_file(location: Location, predictions: Location, naming: Naming, split: str | None) -> Truth:
    """The labels of a label file for the images that have a prediction."""
    file = read_labels(location)
    if not any(row.label is not None for row in file.rows):
        raise UsageError(
            f"{location.uri}: holds no label (read as {file.format}); give labelled shards or a label file"
        )
    mapped = naming.mapping.apply(file)

    def items() -> Iterator[Item]:
        return _predicted_items(predictions, naming, split)

    join = join_labels([mapped], items, pseudonym=naming.pseudonym, item_names=naming.item_names)
    if join.report.joined:
        file.log()
        naming.mapping.log(row.label for row in file.rows)
        join.report.log()
    labelled = ((item.image_id, values.label) for item, values in join.of(items()) if values.label is not None)
    report = join.report.files[0]
    return replace(_build_truth(labelled, file.digest, file.uri), unpredicted=report.absent + len(report.ambiguous))


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


def _shard_labels(prefix: Location, shards: Sequence[ShardEntry]) -> pa.Table:
    """The columns ``image_id``, ``label`` and ``split`` of all rows that the manifest counts."""
    columns = ["image_id", "label", "split"]

    def labels(shard: ShardEntry) -> pa.Table:
        return shard.remaining(read_columns(prefix / shard.name, records.SHARD, columns))

    return pa.concat_tables(each_of(shards, labels))


def _predicted_items(predictions: Location, naming: Naming, split: str | None) -> Iterator[Item]:
    """Every predicted image, or those of a split, file by file, in the same order at each call."""
    files = [predictions / name for name in predictions.files(".parquet")]
    columns = ["image_id", "patient_id", "split"]
    for table in each_of(files, lambda file: read_columns(file, records.PREDICTION, columns)):
        for image, patient, own_split in zip(*(table[column].to_pylist() for column in columns), strict=True):
            if split in (None, own_split):
                yield Item(image, naming.item_of(image), patient)
