"""The labels that predictions are compared with."""

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
    """What is known: the row of each image, and for each row its label as an index into ``names``.

    Args:
        rows: row by image_id.
        codes: int64 [rows].
        names: the labels there are.
        digest: SHA-256 that stands for where they were read.
        uri: where they were read.
        unpredicted: labels of a label file that name no predicted image; they have no row.
    """

    rows: dict[str, int]
    codes: np.ndarray
    names: list[str]
    digest: str
    uri: str
    unpredicted: int = 0


def read_truth(location: Location, predictions: Location) -> Truth:
    """Labels of a prefix of shards or a label file; rows without a label are left out.

    Args:
        location: of the labels.
        predictions: folder with the files of predictions, whose images a label file names.

    Raises:
        UsageError: it is neither, holds no label, or gives an image two.
    """
    if (location / FILE).exists():
        manifest = read_manifest(location)
        table = _shard_labels([location / shard.name for shard in manifest.shards]).drop_null()
        pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
        return _labels(pairs, manifest.digest, location.uri)
    if not location.exists() or location.is_folder():
        raise UsageError(f"{location.uri}: neither shards nor a label file; correct --labels")
    file = read_labels(location)
    if not any(row.label is not None for row in file.rows):
        raise UsageError(
            f"{location.uri}: holds no label (read as {file.format}); give labelled shards or a label file"
        )
    join = join_labels(file, lambda: _predicted(predictions))
    if join.rows:
        file.log()
        join.log()
    labelled = ((image, row.label) for image, row in join.rows.items() if row.label is not None)
    return replace(_labels(labelled, file.digest, file.uri), unpredicted=join.absent + len(join.ambiguous))


def _labels(pairs: Iterable[tuple[str, str]], digest: str, uri: str) -> Truth:
    """Labels by image. Spellings of a class that differ by blanks or Unicode form are one label."""
    known: dict[str, str] = {}
    for image, label in pairs:
        if known.setdefault(image, normal_form(label)) != normal_form(label):
            raise UsageError(f"{uri}: gives one image two labels; keep one of them")
    names = sorted(set(known.values()))
    index = {name: number for number, name in enumerate(names)}
    codes = np.fromiter((index[label] for label in known.values()), np.int64, len(known))
    return Truth({image: row for row, image in enumerate(known)}, codes, names, digest, uri)


def _shard_labels(shards: Sequence[Location]) -> pa.Table:
    return pa.concat_tables(each_of(shards, lambda shard: read_columns(shard, records.SHARD, ["image_id", "label"])))


def _predicted(predictions: Location) -> Iterator[str]:
    """The ``image_id`` of every prediction, file by file."""
    files = [predictions / name for name in predictions.files(".parquet")]
    for table in each_of(files, lambda file: read_columns(file, records.PREDICTION, ["image_id"])):
        yield from table["image_id"].to_pylist()
