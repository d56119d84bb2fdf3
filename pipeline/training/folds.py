"""Which rows are held out together: folds that no patient is on two sides of.

Rows of one ``patient_id`` are one group. A row without one joins the rows that look like it (``pipeline.neighbours``),
of a known patient or not. Groups are then dealt out to the folds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from sklearn.model_selection import StratifiedGroupKFold

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models.held_out import HeldOut, How
from medfocus.pipeline.training.neighbours import Neighbours

# Which neighbours are joined, from all of them to the pictures that are the same.
Reach = Literal["all", "of one class", "identical"]
_REACHES: tuple[Reach, ...] = ("all", "of one class", "identical")


def check_classes(labels: Mapping[str, Sequence[Any]]) -> None:
    """Raise UsageError unless there are two classes or more of two rows or more each."""
    counts = Counter(labels["label"])
    if len(counts) < 2:
        raise UsageError(f"the features hold {len(counts)} class; training needs two or more, label more images")
    for label, examples in sorted(counts.items()):
        if examples < 2:
            raise UsageError(f"class {label} has one example; training needs two or more, add some or drop the class")


def split_rows(
    labels: Mapping[str, Sequence[Any]], neighbours: Neighbours, count: int, seed: int
) -> tuple[dict[str, int], HeldOut]:
    """The fold of each ``image_id``, and how the rows are held out.

    Groups of several classes can leave no way to have every class on both sides. Then only neighbours of one class are
    joined, and if that leaves none either, only identical pictures.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id`` (None: not known), a list each; their order does not matter.
        neighbours: pairs of images that may be of one patient.
        count: of folds; fewer where a class has fewer groups.
        seed: of the choice of folds.

    Raises:
        UsageError: a class is too small to be on both sides.
    """
    for reach in _REACHES[:-1]:
        groups, held_out = group_rows(labels, neighbours, count, reach)
        with suppress(UsageError):
            return assign_folds(labels, count, seed, groups), held_out
    groups, held_out = group_rows(labels, neighbours, count, _REACHES[-1])
    return assign_folds(labels, count, seed, groups), held_out


def group_rows(
    labels: Mapping[str, Sequence[Any]], neighbours: Neighbours, folds: int, reach: Reach = "all"
) -> tuple[list[int], HeldOut]:
    """The group of each row, whatever the order of the rows, and how that was decided.

    Neighbours are joined, the most alike first, except where

    * the two are of different known patients;
    * a group would hold more rows of a class than a fold should, or a class would be left with fewer groups than folds.
      Otherwise a chain of look-alikes could make folds impossible. Identical pictures are joined all the same.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id`` (None: not known), a list each.
        neighbours: pairs of images that may be of one patient.
        folds: how many there are to be.
        reach: which of the neighbours may be joined.
    """
    order = sorted(range(len(labels["image_id"])), key=lambda row: labels["image_id"][row])
    position = {labels["image_id"][row]: number for number, row in enumerate(order)}
    classes = [labels["label"][row] for row in order]
    groups = _Groups(classes, [labels["patient_id"][row] for row in order], folds)
    pairs = [(position[pair.first], position[pair.second], pair.identical) for pair in neighbours.pairs]
    for one, other, identical in pairs:
        if identical or reach == "all" or (reach == "of one class" and classes[one] == classes[other]):
            groups.join(one, other, limited=not identical)
    found = [0] * len(order)
    for number, row in enumerate(order):
        found[row] = groups.of(number)
    unknown = sum(patient is None for patient in labels["patient_id"])
    how: How = "by patient" if not unknown else "by neighbours" if neighbours.compared else "by image"
    return found, HeldOut(how, len(order), unknown, len(set(found)), sum(groups.apart(*pair[:2]) for pair in pairs))


class _Groups:
    """Disjoint sets of rows, each with its known patient, if it has one, and its rows of each class."""

    def __init__(self, labels: Sequence[str], patients: Sequence[str | None], folds: int):
        self.sets = DisjointSet(range(len(labels)))
        self.folds = folds
        self.rows = {row: Counter([label]) for row, label in enumerate(labels)}
        self.patient = {row: patient for row, patient in enumerate(patients) if patient is not None}
        self.groups = Counter(labels)  # of each class
        self.most = {label: -(-rows // folds) for label, rows in Counter(labels).items()}
        first: dict[str, int] = {}
        for row, patient in enumerate(patients):
            if patient is not None:
                self.join(first.setdefault(patient, row), row, limited=False)

    def of(self, row: int) -> int:
        return int(self.sets[row])

    def join(self, one: int, other: int, *, limited: bool) -> None:
        """Make one group of the groups of two rows, unless that may not be."""
        one, other = self.sets[one], self.sets[other]
        if one == other or self._of_two_patients(one, other) or (limited and not self._within_limits(one, other)):
            return
        for label in self.rows[one].keys() & self.rows[other].keys():
            self.groups[label] -= 1
        rows, patient = self.rows[one] + self.rows[other], self.patient.get(one, self.patient.get(other))
        self.sets.merge(one, other)
        root = self.sets[one]
        self.rows[root] = rows
        if patient is not None:
            self.patient[root] = patient

    def apart(self, one: int, other: int) -> bool:
        """Whether two rows that may be of one patient are in two groups."""
        one, other = self.sets[one], self.sets[other]
        return one != other and not self._of_two_patients(one, other)

    def _of_two_patients(self, one: int, other: int) -> bool:
        return one in self.patient and other in self.patient and self.patient[one] != self.patient[other]

    def _within_limits(self, one: int, other: int) -> bool:
        both = self.rows[one].keys() & self.rows[other].keys()
        rows = self.rows[one] + self.rows[other]
        return all(self.groups[label] > self.folds for label in both) and all(
            rows[label] <= self.most[label] for label in rows
        )


def assign_folds(
    labels: Mapping[str, Sequence[Any]], count: int, seed: int, groups: Sequence[int] | None = None
) -> dict[str, int]:
    """The fold of each ``image_id``: no group in two folds, every class in training whichever fold is held out.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id``, a list each; their order does not matter.
        count: of folds; fewer where a class has fewer groups.
        seed: of the choice.
        groups: of each row (``group_rows``); if not given, of ``patient_id`` alone.

    Raises:
        UsageError: a class is too small to be on both sides.
    """
    check_classes(labels)
    if groups is None:
        groups, _ = group_rows(labels, Neighbours(), count)
    order = sorted(range(len(groups)), key=lambda row: labels["image_id"][row])
    images = [labels["image_id"][row] for row in order]
    classes = np.array([labels["label"][row] for row in order], dtype=object)
    grouped = np.array([groups[row] for row in order])
    everyone = set(classes)
    sizes = {label: len(set(grouped[classes == label])) for label in everyone}
    for label, size in sorted(sizes.items()):
        if size < 2:
            raise UsageError(
                f"class {label} comes from one patient, or from images that are all the same; validation needs others,"
                " add some"
            )
    folds = min(count, *sizes.values())
    for attempt in range(20):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + attempt)
        parts = [held_out for _, held_out in splitter.split(classes, classes, grouped)]
        if all(len(part) and set(np.delete(classes, part)) == everyone for part in parts):
            return {images[row]: number for number, part in enumerate(parts) for row in part}
    raise UsageError("no split leaves every class in training without sharing a patient; add patients to small classes")
