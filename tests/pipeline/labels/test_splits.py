"""Splits by patient: no patient in two, stable, and balanced over random archives."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocus.pipeline.labels.splits import PatientRow, assign_splits, hashed_split

SHARES = {"train": 0.8, "test": 0.2}
names = st.sampled_from("abcd")


@st.composite
def archives(draw: st.DrawFn, most_classes: int = 1) -> list[PatientRow]:
    """Patients with one class, or several, and at most two sites."""
    size = draw(st.integers(1, 60))
    classes = st.frozensets(names, min_size=1, max_size=most_classes)
    sites = st.frozensets(st.sampled_from(["north", "south", "west"]), max_size=2)
    return [PatientRow(f"P{number}", draw(classes), draw(sites)) for number in range(size)]


def counts(rows: list[PatientRow], splits: dict[str, str]) -> Counter[tuple[str, str]]:
    return Counter((label, splits[row.patient]) for row in rows for label in row.labels)


@settings(deadline=None, max_examples=60)
@given(archives(3), st.integers(0, 3), st.randoms())
def test_the_order_of_patients_does_not_matter_and_the_seed_does(rows: list[PatientRow], seed: int, random) -> None:
    splits = assign_splits(rows, SHARES, seed)
    assert splits.keys() == {row.patient for row in rows} and set(splits.values()) <= SHARES.keys()
    shuffled = random.sample(rows, len(rows))
    assert assign_splits(shuffled, SHARES, seed) == splits
    if len(rows) > 40:
        assert len({str(sorted(assign_splits(rows, SHARES, other).items())) for other in range(8)}) > 1


@settings(deadline=None, max_examples=60)
@given(archives(3), st.integers(0, 60))
def test_known_patients_keep_their_split_when_new_ones_come(rows: list[PatientRow], first: int) -> None:
    earlier = assign_splits(rows[:first], SHARES, 0)
    later = assign_splits(rows, SHARES, 0, earlier)
    assert earlier.items() <= later.items() and len(later) == len(rows)


@settings(deadline=None, max_examples=200)
@given(archives(), st.sampled_from([0.1, 0.2, 0.4]))
def test_every_class_with_three_patients_is_in_both_splits_and_smaller_ones_in_training(
    rows: list[PatientRow], share: float
) -> None:
    splits = assign_splits(rows, {"train": 1 - share, "test": share}, 0)
    sizes = Counter(label for row in rows for label in row.labels)
    found = counts(rows, splits)
    for label, size in sizes.items():
        if size >= 3:
            assert found[label, "train"] >= 2 and found[label, "test"] >= 1
        else:
            assert found[label, "train"] == size


def test_shares_hold_for_classes_sites_and_both_over_random_archives() -> None:
    """Patients that a stratum has too many or too few in the test split: two at most, and one third on average."""
    rng = np.random.default_rng(0)
    off: dict[str, list[float]] = {"all": [], "class": [], "site": [], "both": []}
    for trial in range(60):
        size, classes, sites = rng.integers(10, 400), rng.integers(2, 8), rng.integers(1, 6)
        label_shares, site_shares = rng.dirichlet(np.full(classes, 0.7)), rng.dirichlet(np.full(sites, 0.7))
        rows = [
            PatientRow(
                f"P{number}",
                frozenset(map(str, rng.choice(classes, 1 + (trial % 2 and rng.random() < 0.1), p=label_shares))),
                frozenset({str(rng.choice(sites, p=site_shares))}),
            )
            for number in range(size)
        ]
        splits = assign_splits(rows, SHARES, trial)
        for kind, strata in (
            ("all", [["all"] for _ in rows]),
            ("class", [list(row.labels) for row in rows]),
            ("site", [list(row.sites) for row in rows]),
            ("both", [[f"{label}/{site}" for label in row.labels for site in row.sites] for row in rows]),
        ):
            total = Counter(name for row in strata for name in row)
            tested = Counter(
                name for row, own in zip(rows, strata, strict=True) for name in own if splits[row.patient] == "test"
            )
            off[kind] += [abs(tested[name] - 0.2 * total[name]) for name in total]
    assert all(max(values) <= 2.5 and np.mean(values) < 0.5 for values in off.values())


def test_a_patient_without_labels_has_the_split_of_its_hash() -> None:
    splits = [hashed_split(f"P{number}", SHARES, 7) for number in range(5000)]
    assert abs(splits.count("test") / 5000 - 0.2) < 0.02
    assert splits == [hashed_split(f"P{number}", dict(reversed(SHARES.items())), 7) for number in range(5000)]
    assert splits != [hashed_split(f"P{number}", SHARES, 8) for number in range(5000)]
    wider = [hashed_split(f"P{number}", {"train": 0.7, "test": 0.3}, 7) for number in range(5000)]
    assert all(new == "test" for old, new in zip(splits, wider, strict=True) if old == "test")


def test_three_splits_are_possible() -> None:
    rows = [PatientRow(f"P{number}", frozenset({"ab"[number % 2]})) for number in range(40)]
    sizes = {"train": 12, "validation": 4, "test": 4}
    splits = assign_splits(rows, {"train": 0.6, "validation": 0.2, "test": 0.2}, 0)
    assert counts(rows, splits) == {(label, split): size for label in "ab" for split, size in sizes.items()}
