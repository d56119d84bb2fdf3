"""Predictions, joined with the labels of their images."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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
    """What is needed of one file of predictions: the rows with a label, and what its rows have in common.

    Args:
        known: int64 [n], the row of each in the labels.
        probabilities: float32 [n, C].
        accepted: bool [n].
        patients: the patient of each; None where none is known.
        sites: the site of each; '' where none is known.
        classes: in the order of ``probabilities``.
        versions: of the model, of all rows.
        rows: how many rows the file has.
    """

    known: np.ndarray
    probabilities: np.ndarray
    accepted: np.ndarray
    patients: list[str | None]
    sites: list[str]
    classes: tuple[str, ...]
    versions: frozenset[str]
    rows: int


def read_predictions(rows: Location, truth: Truth) -> tuple[list[PredictionFile], tuple[str, ...], str]:
    """The predictions with a label, file by file and without their masks; the classes; the model version.

    Raises:
        UsageError: there is no prediction, or the files do not agree on the classes or the model.
    """
    names = rows.files(".parquet")
    if not names:
        raise UsageError(f"{rows.uri}: no predictions; run medfocus score into it, or correct OUT")
    parts = each_of([rows / name for name in names], lambda file: _part(file, truth))
    if any(part.classes != parts[0].classes for part in parts):
        raise UsageError(f"{rows.uri}: the files name different classes, or in another order; score into a new prefix")
    versions = frozenset[str]().union(*(part.versions for part in parts))
    if not versions:
        raise UsageError(f"{rows.uri}: every image is in quarantine; see the causes there")
    if len(versions) > 1:
        raise UsageError(f"{rows.uri}: predictions of {len(versions)} model versions; score into a new prefix")
    return parts, parts[0].classes, next(iter(versions))


def _part(file: Location, truth: Truth) -> PredictionFile:
    table = read_columns(file, records.PREDICTION, _COLUMNS)
    if records.CLASSES_KEY not in table.schema.metadata:
        raise UsageError(f"{file.uri}: its metadata names no classes; score into a new prefix")
    classes = tuple(json.loads(table.schema.metadata[records.CLASSES_KEY]))
    known = np.array([truth.rows.get(image, -1) for image in table["image_id"].to_pylist()], np.int64)
    versions = frozenset(table["model_version"].unique().to_pylist())
    labelled = table.filter(pa.array(known >= 0))
    probabilities = labelled["probabilities"].combine_chunks()
    lengths = probabilities.value_lengths().to_numpy(zero_copy_only=False)
    values = probabilities.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not (lengths == len(classes)).all() or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(
            f"{file.uri}: column probabilities is not {len(classes)} numbers from 0 to 1 in every row; score again"
        )
    return PredictionFile(
        known=known[known >= 0],
        probabilities=values.reshape(-1, len(classes)),
        accepted=np.array(labelled["decision"].to_pylist(), object) == "accept",
        patients=labelled["patient_id"].to_pylist(),
        sites=[site or "" for site in labelled["site"].to_pylist()],
        classes=classes,
        versions=versions,
        rows=table.num_rows,
    )


def evaluation_set(
    parts: Sequence[PredictionFile], classes: tuple[str, ...], truth: Truth, uri: str
) -> tuple[EvaluationSet, np.ndarray]:
    """All predictions with a label, and the site of each (object [N], '' where none is known)."""
    known = np.concatenate([part.known for part in parts])
    if not len(known):
        raise UsageError(f"{truth.uri}: names none of the predicted images; give the labels of this archive")
    if twice := len(known) - len(np.unique(known)):
        raise UsageError(f"{uri}: {twice} images are predicted more than once; score into a new prefix")
    index = {name: number for number, name in enumerate(classes)}
    folded = {normal_form(name): number for number, name in enumerate(classes)}
    of_label = np.array([index.get(name, folded.get(name, -1)) for name in truth.names], np.int64)
    labels = truth.codes[known]
    if len(strangers := np.unique(labels[of_label[labels] < 0])):
        raise UsageError(f"{truth.uri}: {_no_class(truth.names[strangers[0]], classes)}; correct the labels")
    judged = EvaluationSet(
        truth=of_label[labels],
        probabilities=np.concatenate([part.probabilities for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
        patients=_numbered([patient for part in parts for patient in part.patients]),
        classes=classes,
    )
    return judged, np.array([site for part in parts for site in part.sites], object)


def _no_class(label: str, classes: Sequence[str]) -> str:
    """That a label is no class; what differs is made visible where a class looks like it."""
    like = [name for name in classes if likeness(name) == likeness(label)]
    near = difflib.get_close_matches(label, classes, n=1, cutoff=0.7)
    for name in like or [name for name in near if not (label + name).isascii()]:
        return "label {} is no class of the model, though it looks like {}".format(*quote_both(label, name))
    return f"label {label!r} is no class of the model ({', '.join(map(repr, classes))})"


def _numbered(patients: Sequence[str | None]) -> np.ndarray:
    """A number for each patient, int64 [N]; an image whose patient is not known has its own."""
    numbers: dict[str | int, int] = {}
    return np.array(
        [numbers.setdefault(row if patient is None else patient, len(numbers)) for row, patient in enumerate(patients)],
        np.int64,
    )
