"""Folds of the labelled rows: no patient is in two folds.

The rows of one ``patient_id`` are a group. A row without a ``patient_id`` joins the group of the rows that look like it
(``neighbours``), whether their patient is known or not. Each group is assigned to one fold.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from sklearn.model_selection import StratifiedGroupKFold

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models.held_out import HeldOut, HoldOutMethod
from medfocus.pipeline.training.neighbours import Neighbours

# Which neighbours are joined: all, those of one class, or identical images.
Reach = Literal["all", "of one class", "identical"]
_REACHES: tuple[Reach, ...] = ("all", "of one class", "identical")


def check_classes(labels: Mapping[str, Sequence[Any]]) -> None:
    """Check that there are at least two classes, each with at least two rows.

    Args:
        labels: ``label``, a list.

    Raises:
        UsageError: a class is missing, or has one row.
    """
    counts = Counter(labels["label"])
    if len(counts) < 2:
        raise UsageError(f"the features hold {len(counts)} class; training needs two or more, label more images")
    for label, examples in sorted(counts.items()):
        if examples < 2:
            raise UsageError(f"class {label} has one example; training needs two or more, add some or drop the class")


def split_rows(
    labels: Mapping[str, Sequence[Any]], neighbours: Neighbours, count: int, seed: int
) -> tuple[dict[str, int], HeldOut]:
    """Assign rows to folds.

    Groups of several classes can make it impossible to have every class in training for each fold. Then only neighbours
    of one class are joined. If that is impossible too, only identical images are joined.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id`` (None: not known), a list each; their order does not matter.
        neighbours: pairs of images that may be of one patient.
        count: number of folds; there are fewer where a class has fewer groups.
        seed: seed of the assignment.

    Returns:
        The fold of each ``image_id``, and how the rows are held out.

    Raises:
        UsageError: a class is too small to be in training and held out.
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
    """Assign rows to groups that are held out together; the order of the rows does not matter.

    Neighbours are joined, the most similar pair first. Two neighbours are not joined if

    * they belong to different known patients;
    * the group would hold more rows of a class than a fold should, or a class would have fewer groups than folds.
      Without this limit, a chain of similar images could make folds impossible. It does not apply to identical images.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id`` (None: not known), a list each.
        neighbours: pairs of images that may be of one patient.
        folds: intended number of folds.
        reach: which of the neighbours may be joined.

    Returns:
        The group of each row, in the order of ``labels``, and how the rows are held out.
    """
    order = sorted(range(len(labels["image_id"])), key=lambda row: labels["image_id"][row])
    position = {labels["image_id"][row]: number for number, row in enumerate(order)}
    classes = [labels["label"][row] for row in order]
    groups = _Groups(classes, [labels["patient_id"][row] for row in order], folds)
    pairs = [(position[pair.first], position[pair.second], pair.identical) for pair in neighbours.pairs]
    for one, other, identical in pairs:
        if identical or reach == "all" or (reach == "of one class" and classes[one] == classes[other]):
            groups.join(one, other, limited=not identical)
    group_of_row = [0] * len(order)
    for number, row in enumerate(order):
        group_of_row[row] = groups.root(number)
    unknown = sum(patient is None for patient in labels["patient_id"])
    how: HoldOutMethod = "by patient" if not unknown else "by neighbours" if neighbours.compared else "by image"
    apart = sum(groups.are_apart(*pair[:2]) for pair in pairs)
    return group_of_row, HeldOut(how, len(order), unknown, len(set(group_of_row)), apart)


class _Groups:
    """Disjoint sets of rows, each with its patient, where one is known, and its number of rows of each class.

    Args:
        labels: class of each row.
        patients: patient of each row; None where it is not known.
        folds: intended number of folds.
    """

    def __init__(self, labels: Sequence[str], patients: Sequence[str | None], folds: int):
        self.sets = DisjointSet(range(len(labels)))
        self.folds = folds
        self.rows = {row: Counter([label]) for row, label in enumerate(labels)}
        self.patient = {row: patient for row, patient in enumerate(patients) if patient is not None}
        self.groups = Counter(labels)  # number of groups of each class
        self.limit = {label: -(-rows // folds) for label, rows in Counter(labels).items()}
        first: dict[str, int] = {}
        for row, patient in enumerate(patients):
            if patient is not None:
                self.join(first.setdefault(patient, row), row, limited=False)

    def root(self, row: int) -> int:
        """The row that stands for the group of a row."""
        return int(self.sets[row])

    def join(self, one: int, other: int, *, limited: bool) -> None:
        """Unite the groups of two rows, unless their patients differ or a limit that applies would be exceeded."""
        one, other = self.sets[one], self.sets[other]
        if one == other or self._differ_in_patient(one, other) or (limited and not self._within_limits(one, other)):
            return
        for label in self.rows[one].keys() & self.rows[other].keys():
            self.groups[label] -= 1
        rows, patient = self.rows[one] + self.rows[other], self.patient.get(one, self.patient.get(other))
        self.sets.merge(one, other)
        root = self.sets[one]
        self.rows[root] = rows
        if patient is not None:
            self.patient[root] = patient

    def are_apart(self, one: int, other: int) -> bool:
        """Whether two rows that may be of one patient are in different groups."""
        one, other = self.sets[one], self.sets[other]
        return one != other and not self._differ_in_patient(one, other)

    def _differ_in_patient(self, one: int, other: int) -> bool:
        return one in self.patient and other in self.patient and self.patient[one] != self.patient[other]

    def _within_limits(self, one: int, other: int) -> bool:
        both = self.rows[one].keys() & self.rows[other].keys()
        rows = self.rows[one] + self.rows[other]
        return all(self.groups[label] > self.folds for label in both) and all(
            rows[label] <= self.limit[label] for label in rows
        )


def assign_folds(
    labels: Mapping[str, Sequence[Any]], count: int, seed: int, groups: Sequence[int] | None = None
) -> dict[str, int]:
    """Assign groups to folds: no group is in two folds, and whichever fold is held out, training has every class.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id``, a list each; their order does not matter.
        count: number of folds; there are fewer where a class has fewer groups.
        seed: seed of the assignment.
        groups: group of each row (``group_rows``); if left out, rows are grouped by ``patient_id`` alone.

    Returns:
        The fold of each ``image_id``.

    Raises:
        UsageError: a class is too small to be in training and held out.
    """
    check_classes(labels)
    if groups is None:
        groups, _ = group_rows(labels, Neighbours(), count)
    order = sorted(range(len(groups)), key=lambda row: labels["image_id"][row])
    images = [labels["image_id"][row] for row in order]
    classes = np.array([labels["label"][row] for row in order], dtype=object)
    ordered_groups = np.array([groups[row] for row in order])
    all_classes = set(classes)
    sizes = {label: len(set(ordered_groups[classes == label])) for label in all_classes}
    for label, size in sorted(sizes.items()):
        if size < 2:
            raise UsageError(
                f"class {label} comes from one patient, or from images that are all the same; validation needs others,"
                " add some"
            )
    folds = min(count, *sizes.values())
    for attempt in range(20):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + attempt)
        parts = [held_out for _, held_out in splitter.split(classes, classes, ordered_groups)]
        if all(len(part) and set(np.delete(classes, part)) == all_classes for part in parts):
            return {images[row]: number for number, part in enumerate(parts) for row in part}
    raise UsageError("no split leaves every class in training without sharing a patient; add patients to small classes")
