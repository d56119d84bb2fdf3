"""Reading shards and feature files: what a worker does before any model sees the rows."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import records
from pipeline.errors import MedFocusError, UsageError
from pipeline.manifest import ShardEntry
from pipeline.storage import Location
from stages.decode import Decode
from stages.prompt_settings import PromptSettings

# Columns that go with an image from the shard to the end; null travels as an empty string.
CARRIED = ("image_id", "label", "patient_id", "site", "source_uri")


def read_shard(shard: ShardEntry, source: Location) -> pa.Table:
    """The rows of a shard, checked against the manifest.

    Raises:
        MedFocusError: it is not a shard, a column is missing, or its content is not what the manifest names.
    """
    location = source / shard.name
    content = location.read()
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise MedFocusError(f"{location.uri}: has changed since it was packed; pack the images again")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise MedFocusError(f"{location.uri}: not a Parquet file; pack the images again") from error
    try:
        records.check_record(file.schema_arrow, records.SHARD, location.uri)
    except UsageError as error:
        raise MedFocusError(str(error)) from error  # too late to be a matter of the call
    return file.read()


def read_and_decode(
    batch: dict[str, np.ndarray], source: Location, decode: dict[str, int], labelled_only: bool
) -> dict[str, np.ndarray]:
    """One shard, named by its manifest entry, to decoded rows."""
    shard = ShardEntry(
        **{name: column[0].item() if hasattr(column[0], "item") else column[0] for name, column in batch.items()}
    )
    table = read_shard(shard, source)
    if labelled_only:
        table = table.filter(table["label"].is_valid())
    rows = {name: np.array([value or "" for value in table[name].to_pylist()], object) for name in CARRIED}
    rows["image"] = table["image"].to_numpy(zero_copy_only=False)
    rows["media_type"] = table["media_type"].to_numpy(zero_copy_only=False)
    # A label of the shard is the truth; the stages' ``label`` is what the model predicts.
    rows["truth"] = rows.pop("label")
    decoded = Decode(**decode)(rows)
    del decoded["media_type"]
    return decoded | {
        "shard": np.full(table.num_rows, shard.sha256, object),
        "shard_rows": np.full(table.num_rows, table.num_rows),
    }


def read_features(
    batch: dict[str, np.ndarray],
    folder: Location,
    settings: PromptSettings,
    folds: Mapping[str, int],
    wanted: frozenset[int],
) -> dict[str, np.ndarray]:
    """The rows of one feature file that belong to the wanted folds, as arrays.

    The class is there as int64 ``target`` and the fold as int64 ``fold``.
    """
    location = folder / str(batch["name"][0])
    table = pq.read_table(pa.BufferReader(location.read()))
    names = ("tokens", "focus") + (("region_tokens",) if settings.uses_region else ())
    views, tokens, width = table.schema.field("tokens").type.shape
    expected = records.feature_schema(views, tokens, width, region=settings.uses_region)
    records.check_record(table.schema, expected, location.uri)
    fold = np.array([folds[image] for image in table["image_id"].to_pylist()], np.int64)
    chosen = np.isin(fold, list(wanted))
    rows = {name: table[name].combine_chunks().to_numpy_ndarray()[chosen] for name in names}
    classes = {label: index for index, label in enumerate(settings.classes)}
    targets = [classes[label] for label in table["label"].to_pylist()]
    return rows | {"target": np.array(targets, np.int64)[chosen], "fold": fold[chosen]}
