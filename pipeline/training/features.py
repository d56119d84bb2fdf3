"""Reads the features that training learns from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.splits import TEST
from medfocus.stages.prompt_settings import PromptSettings

_NO_FOLD = -1


def read_features(
    batch: dict[str, np.ndarray],
    folder: Location,
    settings: PromptSettings,
    folds: Mapping[str, int],
    wanted: frozenset[int],
) -> dict[str, np.ndarray]:
    """Read the rows of one feature file that belong to the wanted folds.

    Args:
        batch: ``name``, the name of the file, in its only row.
        folder: folder of the feature files.
        settings: the classes, and whether the model uses the region.
        folds: fold of each ``image_id``; rows without one are left out.
        wanted: the folds whose rows are read.

    Returns:
        ``tokens`` float16 [N, V, L, D], ``focus`` float16 [N, V, L-1], ``region_tokens`` float16 [N, V, L, D] where the
        model uses the region, ``target`` int64 [N], the class, and ``fold`` int64 [N]. Of the V views the first is the
        image itself.

    Raises:
        UsageError: the file holds no feature rows.
        StorageError: the file cannot be read.
    """
    location = folder / str(batch["name"][0])
    table = pq.read_table(pa.BufferReader(location.read()))
    names = ("tokens", "focus") + (("region_tokens",) if settings.uses_region else ())
    tokens, width = table.schema.field("tokens").type.shape
    expected = records.feature_schema(tokens, width, region=settings.uses_region)
    records.check_record(table.schema, expected, location.uri)
    fold = np.array([folds.get(image, _NO_FOLD) for image in table["image_id"].to_pylist()], np.int64)
    selected = np.isin(fold, list(wanted))
    rows = {name: _views(table, name)[selected] for name in names}
    classes = {label: index for index, label in enumerate(settings.classes)}
    targets = [classes[label] for label in table["label"].filter(pa.array(selected)).to_pylist()]
    return rows | {"target": np.array(targets, np.int64), "fold": fold[selected]}


def _views(table: pa.Table, name: str) -> np.ndarray:
    """A column of tensors with its augmented views, where the features have them: [N, V, ...]."""
    original = table[name].combine_chunks().to_numpy_ndarray()[:, None]
    if records.AUGMENTED + name not in table.schema.names:
        return original
    return np.concatenate([original, table[records.AUGMENTED + name].combine_chunks().to_numpy_ndarray()], axis=1)


def read_labels(prefix: Location) -> dict[str, list[Any]]:
    """Read the columns ``image_id``, ``label`` and ``patient_id`` of the rows to train on, without the tokens.

    These are all feature rows but those of the split ``test``, which a model must not have learned from.

    Args:
        prefix: prefix that ``embed`` has finished.

    Raises:
        UsageError: there is no feature row to train on.
    """
    folder = Output(prefix, FEATURES).rows
    names = folder.files(".parquet")
    if not names:
        raise UsageError(f"{prefix.uri}: embed found no labelled image; pack with labels and embed again")
    paths = [f"{folder.path}/{name}" for name in names]
    dataset = pads.dataset(paths, filesystem=folder.arrow_filesystem, format="parquet")
    table = dataset.to_table(columns=["image_id", "label", "patient_id", "split"])
    rows = table.filter(pc.fill_null(pc.not_equal(table["split"], TEST), True))
    if left_out := table.num_rows - rows.num_rows:
        log.info("%d labelled images are of the split %s and are not trained on", left_out, TEST)
    if not rows.num_rows:
        raise UsageError(f"{prefix.uri}: all labelled images are of the split {TEST}; pack others")
    return rows.drop_columns("split").to_pydict()
