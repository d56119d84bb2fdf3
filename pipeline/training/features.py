"""Reading features: the rows that training learns from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError
from medfocus.stages.prompt_settings import PromptSettings


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


def read_labels(prefix: Location) -> dict[str, list[Any]]:
    """Identity, label and patient of every feature row, without its tokens."""
    folder = Output(prefix, FEATURES).rows
    names = folder.files(".parquet")
    if not names:
        raise UsageError(f"{prefix.uri}: embed found no labelled image; pack with labels and embed again")
    dataset = pads.dataset([f"{folder.path}/{name}" for name in names], filesystem=folder.filesystem, format="parquet")
    return dataset.to_table(columns=["image_id", "label", "patient_id"]).to_pydict()
