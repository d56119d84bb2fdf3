"""Reads predictions and joins them with the labels of their images."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.data.tables import each_of, read_columns
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.evaluation.metrics import EvaluationSet
from medfocus.pipeline.evaluation.truth import Truth
from medfocus.pipeline.labels.reader import likeness, normal_form, quote_both

_COLUMNS = ["image_id", "patient_id", "site", "probabilities", "decision", "model_version"]


@dataclass(frozen=True)
class PredictionFile:
    """One file of predictions: the columns of its n labelled rows, and what all of its rows have in common.

    Args:
        truth_rows: int64 [n], the row of each image in the labels.
        probabilities: float32 [n, C].
        accepted: bool [n], whether the decision was ``accept``.
        patients: patient of each image; None where it is not known.
        sites: site of each image; '' where it is not known.
        classes: names of the C classes, in the order of ``probabilities``.
        versions: model versions of all rows.
        row_count: number of rows of the file, labelled or not.
    """

    truth_rows: np.ndarray
    probabilities: np.ndarray
    accepted: np.ndarray
    patients: list[str | None]
    sites: list[str]
    classes: tuple[str, ...]
    versions: frozenset[str]
    row_count: int


def read_predictions(
    rows: Location, truth: Truth, split: str | None = None
) -> tuple[list[PredictionFile], tuple[str, ...], str]:
    """Read the predictions of labelled images, without their masks.

    Args:
        rows: folder with the files of predictions.
        truth: the labels.
        split: split of the predictions that are read; None reads all.

    Returns:
        The files of predictions, the names of the classes, and the model version.

    Raises:
        UsageError: there is no prediction, or the files do not agree on the classes or the model.
        StorageError: a file cannot be read.
    """
    names = rows.files(".parquet")
    if not names:
        raise UsageError(f"{rows.uri}: no predictions; run medfocus score into it, or correct OUT")
    files = list(each_of([rows / name for name in names], lambda file: _read_file(file, truth, split)))
    if any(file.classes != files[0].classes for file in files):
        raise UsageError(f"{rows.uri}: the files name different classes, or in another order; score into a new prefix")
    versions = frozenset[str]().union(*(file.versions for file in files))
    if not versions:
        raise UsageError(f"{rows.uri}: every image is in quarantine; see the causes there")
    if len(versions) > 1:
        raise UsageError(f"{rows.uri}: predictions of {len(versions)} model versions; score into a new prefix")
    return files, files[0].classes, next(iter(versions))


def _read_file(file: Location, truth: Truth, split: str | None) -> PredictionFile:
    table = read_columns(file, records.PREDICTION, [*_COLUMNS, "split"])
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    if records.CLASSES_KEY not in table.schema.metadata:
        raise UsageError(f"{file.uri}: its metadata names no classes; score into a new prefix")
    classes = tuple(json.loads(table.schema.metadata[records.CLASSES_KEY]))
    truth_rows = np.array([truth.rows.get(image, -1) for image in table["image_id"].to_pylist()], np.int64)
    versions = frozenset(table["model_version"].unique().to_pylist())
    labelled = table.filter(pa.array(truth_rows >= 0))
    probabilities = labelled["probabilities"].combine_chunks()
    lengths = probabilities.value_lengths().to_numpy(zero_copy_only=False)
    values = probabilities.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not (lengths == len(classes)).all() or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(
            f"{file.uri}: column probabilities is not {len(classes)} numbers from 0 to 1 in every row; score again"
        )
    return PredictionFile(
        truth_rows=truth_rows[truth_rows >= 0],
        probabilities=values.reshape(-1, len(classes)),
        accepted=np.array(labelled["decision"].to_pylist(), object) == "accept",
        patients=labelled["patient_id"].to_pylist(),
        sites=[site or "" for site in labelled["site"].to_pylist()],
        classes=classes,
        versions=versions,
        row_count=table.num_rows,
    )


def evaluation_set(
    files: Sequence[PredictionFile], classes: tuple[str, ...], truth: Truth, uri: str
) -> tuple[EvaluationSet, np.ndarray]:
    """Join the predictions of all files with their labels.

    Args:
        files: the files of predictions.
        classes: names of the classes, in the order of the probabilities.
        truth: the labels.
        uri: place of the predictions, for messages.

    Returns:
        The predictions with their labels, and the site of each (object [N], '' where it is not known).

    Raises:
        UsageError: no predicted image has a label, an image is predicted more than once, or a label is no class.
    """
    truth_rows = np.concatenate([file.truth_rows for file in files])
    if not len(truth_rows):
        raise UsageError(f"{truth.uri}: names none of the predicted images; give the labels of this archive")
    if duplicates := len(truth_rows) - len(np.unique(truth_rows)):
        raise UsageError(f"{uri}: {duplicates} images are predicted more than once; score into a new prefix")
    by_name = {name: number for number, name in enumerate(classes)}
    by_normal_form = {normal_form(name): number for number, name in enumerate(classes)}
    class_of_label = np.array([by_name.get(name, by_normal_form.get(name, -1)) for name in truth.names], np.int64)
    labels = truth.codes[truth_rows]
    if len(unknown := np.unique(labels[class_of_label[labels] < 0])):
        raise UsageError(f"{truth.uri}: {_no_class(truth.names[unknown[0]], classes)}; correct the labels")
    sample = EvaluationSet(
        truth=class_of_label[labels],
        probabilities=np.concatenate([file.probabilities for file in files]),
        accepted=np.concatenate([file.accepted for file in files]),
        patients=_patient_numbers([patient for file in files for patient in file.patients]),
        classes=classes,
    )
    return sample, np.array([site for file in files for site in file.sites], object)


def _no_class(label: str, classes: Sequence[str]) -> str:
    """The message that a label is no class; where a class looks like it, characters that differ are made visible."""
    similar = [name for name in classes if likeness(name) == likeness(label)]
    close = difflib.get_close_matches(label, classes, n=1, cutoff=0.7)
    for name in similar or [name for name in close if not (label + name).isascii()]:
        return "label {} is no class of the model, though it looks like {}".format(*quote_both(label, name))
    return f"label {label!r} is no class of the model ({', '.join(map(repr, classes))})"


def _patient_numbers(patients: Sequence[str | None]) -> np.ndarray:
    """A number of each image's patient, int64 [N]; an image whose patient is not known has a number of its own."""
    numbers: dict[str | int, int] = {}
    return np.array(
        [numbers.setdefault(row if patient is None else patient, len(numbers)) for row, patient in enumerate(patients)],
        np.int64,
    )
