"""Reading shards and feature files: what a worker does before any model sees the rows."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import AccessError, Location
from medfocus.pipeline.errors import MedFocusError, ShardError, UsageError
from medfocus.pipeline.execution.isolation import FAILURE, Isolation, give_up
from medfocus.stages.batch import Batch, fail, start
from medfocus.stages.decode import Decode
from medfocus.stages.prompt_settings import PromptSettings

# Columns that go with an image from the shard to the end; null travels as an empty string.
CARRIED = ("image_id", "label", "patient_id", "site", "source_uri")


def read_shard(shard: ShardEntry, source: Location) -> pa.Table:
    """The rows of a shard, checked against the manifest.

    Raises:
        StorageError: it cannot be read.
        ShardError: it is not a shard, a column is missing, or its content is not what the manifest names.
    """
    location = source / shard.name
    content = location.read()
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ShardError(f"{location.uri}: has changed since it was packed; pack the images again")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise ShardError(f"{location.uri}: not a Parquet file; pack the images again") from error
    try:
        records.check_record(file.schema_arrow, records.SHARD, location.uri)
    except UsageError as error:
        raise ShardError(str(error)) from error  # too late to be a matter of the call
    return file.read()


def read_and_decode(
    batch: dict[str, np.ndarray], source: Location, decode: dict[str, int], labelled_only: bool, isolation: Isolation
) -> dict[str, np.ndarray]:
    """One shard, named by its manifest entry, to decoded rows.

    Ray Data drops a block without rows, and the shard with it: a shard of which no row is wanted becomes one blank row
    with 0 in ``shard_rows``, and so does a shard that cannot be read, whose blank row says why.

    Raises:
        AccessError: storage may not be used at all.
    """
    shard = ShardEntry(
        **{name: column[0].item() if hasattr(column[0], "item") else column[0] for name, column in batch.items()}
    )
    try:
        rows = _columns(read_shard(shard, source), labelled_only)
    except AccessError:
        raise
    except MedFocusError as error:
        rows = give_up(_blank_row(), "read", error)
    count = len(rows["image_id"])
    if not count:
        rows = _blank_row()
        fail(rows, 0, "read", "NoLabel", "no row of the shard has a label")
    size = len(rows["image_id"])
    rows |= {"shard": np.full(size, shard.sha256, object), "shard_rows": np.full(size, count)}
    decoded = isolation(Decode(**decode), rows)
    del decoded["media_type"]
    return decoded


def _blank_row() -> Batch:
    """A row of no image."""
    blank = {name: np.array([""], object) for name in (*CARRIED, "truth", "media_type", FAILURE)}
    return start(blank | {"image": np.array([b""], object)})


def _columns(table: pa.Table, labelled_only: bool) -> Batch:
    """The rows of a shard as the stages take them, null as an empty string.

    An ``image_id`` that an earlier row has makes a row fail, under the name ``image_id#row``.
    """
    rows = start({name: np.array([value or "" for value in table[name].to_pylist()], object) for name in CARRIED})
    first: dict[str, int] = {}
    for row, name in enumerate(rows["image_id"].tolist()):
        if first.setdefault(name, row) != row:
            rows["image_id"][row] = f"{name}#{row}"
            fail(rows, row, "read", "DuplicateId", f"row {first[name]} of the shard has the same image_id")
    rows["image"] = table["image"].to_numpy(zero_copy_only=False)
    rows["media_type"] = table["media_type"].to_numpy(zero_copy_only=False)
    # A label of the shard is the truth; the stages' ``label`` is what the model predicts.
    rows["truth"] = rows.pop("label")
    rows[FAILURE] = np.full(table.num_rows, "", object)
    kept = rows["truth"] != "" if labelled_only else np.ones(table.num_rows, bool)
    return {name: column[kept] for name, column in rows.items()}


def read_features(
    batch: dict[str, np.ndarray],
    folder: Location,
    settings: PromptSettings,
    folds: Mapping[str, int],
    wanted: frozenset[int],
) -> dict[str, np.ndarray]:
    """The rows of one feature file that belong to the wanted folds, as arrays.

    The class is there as int64 ``target`` and the fold as int64 ``fold``; the other columns have an axis of views after
    that of rows, the image itself first.
    """
    location = folder / str(batch["name"][0])
    table = pq.read_table(pa.BufferReader(location.read()))
    names = ("tokens", "focus") + (("region_tokens",) if settings.uses_region else ())
    tokens, width = table.schema.field("tokens").type.shape
    expected = records.feature_schema(tokens, width, region=settings.uses_region)
    records.check_record(table.schema, expected, location.uri)
    fold = np.array([folds[image] for image in table["image_id"].to_pylist()], np.int64)
    chosen = np.isin(fold, list(wanted))
    rows = {name: _views(table, name)[chosen] for name in names}
    classes = {label: index for index, label in enumerate(settings.classes)}
    targets = [classes[label] for label in table["label"].to_pylist()]
    return rows | {"target": np.array(targets, np.int64)[chosen], "fold": fold[chosen]}


def _views(table: pa.Table, name: str) -> np.ndarray:
    """A column of tensors and that of its augmented views, if there is one: [N, V, ...]."""
    itself = table[name].combine_chunks().to_numpy_ndarray()[:, None]
    if records.AUGMENTED + name not in table.schema.names:
        return itself
    return np.concatenate([itself, table[records.AUGMENTED + name].combine_chunks().to_numpy_ndarray()], axis=1)
