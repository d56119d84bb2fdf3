"""Assigns patients to splits, such as train and test, so that no patient is in two.

A split is stored with each image. It stays as it is when the archive grows, so that what was once trained on is never
tested on, and the other way round.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

TRAIN, TEST = "train", "test"
# Patients of a class that training needs, of which it holds out one at a time; and that any other split needs.
_FEWEST_IN_LARGEST, _FEWEST = 2, 1
# Weights of a class, of a site, of both together and of all patients, where not all shares can be met.
_CLASS, _SITE, _BOTH, _ALL = 1.0, 0.5, 0.5, 0.25


class PatientRow(NamedTuple):
    """A patient with labelled images.

    Args:
        patient: pseudonym of the patient; of an image whose patient is not known, its ``image_id``.
        labels: classes of the images.
        sites: sites of the images.
    """

    patient: str
    labels: frozenset[str]
    sites: frozenset[str] = frozenset()


def assign_splits(
    patients: Iterable[PatientRow], shares: Mapping[str, float], seed: int, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Assign patients to splits, in shares of the patients of each class, each site and each class of a site.

    The largest split is for training. A class with at least one patient more than there are splits has two patients in
    it and one in each other split, as far as patients of several classes and known patients allow it. All patients of a
    smaller class are in the largest split: else the class could not be learned.

    Args:
        patients: the patients with labelled images; their order does not matter.
        shares: share of each split; the sum is 1.
        seed: seed of the assignment.
        known: split of patients that have one, which they keep.

    Returns:
        The split of each patient.
    """
    known = known or {}
    rows = {row.patient: row for row in patients}
    assignment = _Assignment(shares)
    for patient in rows.keys() & known.keys():
        assignment.add(rows[patient], known[patient])
    sizes = Counter(label for row in rows.values() for label in row.labels)
    new = sorted(rows.keys() - known.keys(), key=lambda patient: _order(rows[patient], sizes, seed))
    for patient in new:
        assignment.add(rows[patient], assignment.best(rows[patient]))
    _mend(assignment, [rows[patient] for patient in new], sizes)
    return assignment.splits


def hashed_split(patient: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a patient without labelled images: it depends on nothing but the patient and the seed.

    Args:
        patient: as of a ``PatientRow``.
        shares: as in ``assign_splits``.
        seed: as in ``assign_splits``.
    """
    point, total = int.from_bytes(_digest(patient, seed)[:8]) / 2**64, 0.0
    for split, share in sorted(shares.items()):
        total += share
        if point < total:
            return split
    return _largest(shares)


class _Assignment:
    """Patients in their splits, and the number of patients in each split for each class, site, and both.

    Args:
        shares: as in ``assign_splits``.
    """

    def __init__(self, shares: Mapping[str, float]):
        self.shares = {split: share for split, share in shares.items() if share > 0}
        self.splits: dict[str, str] = {}
        self.counts: Counter[tuple[Hashable, str]] = Counter()
        self.totals: Counter[Hashable] = Counter()

    def add(self, row: PatientRow, split: str) -> None:
        """Put a patient into a split."""
        self.splits[row.patient] = split
        for stratum, _ in _strata(row):
            self.counts[stratum, split] += 1
            self.totals[stratum] += 1

    def move(self, row: PatientRow, split: str) -> None:
        """Put a patient from its split into another."""
        for stratum, _ in _strata(row):
            self.counts[stratum, self.splits[row.patient]] -= 1
            self.totals[stratum] -= 1
        self.add(row, split)

    def best(self, row: PatientRow) -> str:
        """The split that lacks a patient most, in the strata of this one."""
        strata = _strata(row)

        def lack(split: str) -> float:
            return sum(
                weight * (self.shares[split] * (self.totals[stratum] + 1) - self.counts[stratum, split])
                for stratum, weight in strata
            )

        return max(sorted(self.shares), key=lambda split: (lack(split), self.shares[split]))


def _strata(row: PatientRow) -> list[tuple[Hashable, float]]:
    """What a patient is counted for, with weights."""
    both = [(label, site) for label in sorted(row.labels) for site in sorted(row.sites)]
    strata: list[tuple[Hashable, float]] = [("all", _ALL)]
    for kind, names, weight in (
        ("class", sorted(row.labels), _CLASS),
        ("site", sorted(row.sites), _SITE),
        ("both", both, _BOTH),
    ):
        strata += [((kind, name), weight / len(names)) for name in names]
    return strata


def _order(row: PatientRow, sizes: Mapping[str, int], seed: int) -> tuple[int, str, str, bytes]:
    """Patients of rare classes come first, since few others can make up for them; else the order is by the seed."""
    rarest = min(row.labels, key=lambda label: (sizes[label], label), default="")
    return sizes.get(rarest, 0), rarest, min(row.sites, default=""), _digest(row.patient, seed)


def _mend(assignment: _Assignment, new: Sequence[PatientRow], sizes: Mapping[str, int]) -> None:
    """Move new patients until each class that is large enough is in every split, and each small one in the largest."""
    largest = _largest(assignment.shares)

    def need(label: str, split: str) -> int:
        enough = sizes[label] >= _FEWEST_IN_LARGEST + _FEWEST * (len(assignment.shares) - 1)
        if split == largest:
            return _FEWEST_IN_LARGEST if enough else sizes[label]
        return _FEWEST if enough else 0

    def spare(label: str, split: str) -> int:
        return assignment.counts[("class", label), split] - need(label, split)

    for label in sorted(sizes, key=lambda label: (sizes[label], label)):
        for split in sorted(assignment.shares, key=lambda split: (split != largest, split)):
            for row in new:
                if spare(label, split) >= 0:
                    break
                own = assignment.splits[row.patient]
                if label in row.labels and own != split and all(spare(other, own) > 0 for other in row.labels):
                    assignment.move(row, split)


def _largest(shares: Mapping[str, float]) -> str:
    return max(sorted(shares), key=lambda split: shares[split])


def _digest(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()
