from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.training.folds import assign_folds, group_rows, split_rows
from medfocus.pipeline.training.neighbours import Neighbours, Pair

rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 12).map(str))), min_size=2, max_size=60
)


def table(pairs: list[tuple[str, str | None]]) -> dict[str, list]:
    return {
        "image_id": [f"i{number}" for number in range(len(pairs))],
        "label": [label for label, _ in pairs],
        "patient_id": [patient for _, patient in pairs],
    }


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(2, 5), st.integers(0, 3))
def test_no_patient_is_in_two_folds_and_every_class_is_always_learned(pairs: list, count: int, seed: int) -> None:
    labels = table(pairs)
    try:
        folds = assign_folds(labels, count, seed)
    except UsageError as error:
        counts = Counter(label for label, _ in pairs)
        assert len(counts) < 2 or min(counts.values()) < 4 or "patient" in str(error)
        return
    assert list(folds) != [] and set(folds) == set(labels["image_id"])
    assert 2 <= len(set(folds.values())) <= count
    folds_of_patient: dict[str, set[int]] = {}
    for number, (_, patient) in enumerate(pairs):
        if patient is not None:
            folds_of_patient.setdefault(patient, set()).add(folds[f"i{number}"])
    assert all(len(numbers) == 1 for numbers in folds_of_patient.values())
    for held_out in set(folds.values()):
        learned = {label for number, (label, _) in enumerate(pairs) if folds[f"i{number}"] != held_out}
        assert learned == {label for label, _ in pairs}
    assert folds == assign_folds(labels, count, seed)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", None)] * 9, "hold 1 class"),
        ([("a", None)] * 5 + [("b", None)], "class b has one example"),
        ([("a", None)] * 5 + [("b", "p"), ("b", "p")], "class b comes from one patient"),
    ],
)
def test_classes_that_cannot_be_split_are_named(pairs: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assign_folds(table(pairs), 3, 0)


def test_a_patient_may_have_the_name_of_an_image() -> None:
    labels = table([("a", "i1"), ("a", None), ("b", None), ("b", None)])
    assert len(assign_folds(labels, 2, 0)) == 4


def shuffled(labels: dict[str, list], order: list[int]) -> dict[str, list]:
    return {name: [column[row] for row in order] for name, column in labels.items()}


@settings(max_examples=150, deadline=None)
@given(rows, st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59), st.booleans())), st.integers(2, 5), st.data())
def test_near_duplicates_are_joined_as_far_as_folds_allow(
    pairs: list, near: list, count: int, data: st.DataObject
) -> None:
    labels = table(pairs)
    near = [(one % len(pairs), other % len(pairs), identical) for one, other, identical in near]
    near.sort(key=lambda pair: not pair[2])
    neighbours = Neighbours([Pair(f"i{one}", f"i{other}", identical) for one, other, identical in near], True)
    group, held_out = group_rows(labels, neighbours, count)
    order = data.draw(st.permutations(range(len(pairs))))
    assert group_rows(shuffled(labels, order), neighbours, count) == ([group[row] for row in order], held_out)

    patients: dict[int, set[str]] = {}
    for number, (_, patient) in enumerate(pairs):
        if patient is not None:
            patients.setdefault(group[number], set()).add(patient)
    assert all(len(known) == 1 for known in patients.values())
    for patient in {patient for _, patient in pairs} - {None}:
        assert len({group[number] for number, (_, other) in enumerate(pairs) if other == patient}) == 1
    apart = [
        pair
        for pair in near
        if group[pair[0]] != group[pair[1]]
        and (patients.get(group[pair[0]]) is None or patients.get(group[pair[1]]) is None)
    ]
    assert held_out.near_duplicates_apart == len(apart) and not any(identical for *_, identical in apart)
    assert held_out.groups == len(set(group)) and held_out.rows == len(pairs)
    unknown = sum(patient is None for _, patient in pairs)
    assert held_out.rows_without_patient == unknown
    assert held_out.how == ("by neighbours" if unknown else "by patient")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=6, max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59))),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_similar_images_never_make_folds_impossible(classes: list, near: list, count: int, seed: int) -> None:
    """Even if all are similar: with as many images of each class as folds, there are as many folds as intended."""
    counts = Counter(classes)
    if len(counts) < 2 or min(counts.values()) < count:
        return
    labels = table([(label, None) for label in classes])
    chain = [(row, row + 1) for row in range(len(classes) - 1)]
    for similar in (near, chain):
        pairs = [Pair(f"i{one % len(classes)}", f"i{other % len(classes)}", False) for one, other in similar]
        neighbours = Neighbours(pairs, True)
        folds, held_out = split_rows(labels, neighbours, count, seed)
        assert set(folds.values()) == set(range(count))
        for fold in range(count):
            assert {label for row, label in enumerate(classes) if folds[f"i{row}"] != fold} == set(counts)
        apart = sum(folds[pair.first] != folds[pair.second] for pair in pairs)
        assert held_out.near_duplicates_apart >= apart
        group, _ = group_rows(labels, neighbours, count)
        largest = Counter(zip(group, classes, strict=True))
        assert all(size <= -(-counts[label] // count) for (_, label), size in largest.items())


def test_groups_of_several_classes_that_make_folds_impossible_are_divided() -> None:
    """Three groups of two classes each cannot be in two folds with every class on both sides."""
    labels = table([(label, None) for label in "accbba"])
    pairs = [Pair("i0", "i1", False), Pair("i2", "i3", False), Pair("i4", "i5", False)]
    folds, held_out = split_rows(labels, Neighbours(pairs, True), 2, 0)
    assert set(folds.values()) == {0, 1}
    assert (held_out.groups, held_out.near_duplicates_apart) == (6, 3)


def test_the_order_of_rows_changes_no_fold() -> None:
    labels = table([("abc"[row % 3], None if row % 4 else f"p{row % 7}") for row in range(60)])
    order = sorted(range(60), key=lambda row: row * 37 % 60)
    assert assign_folds(labels, 3, 0) == assign_folds(shuffled(labels, order), 3, 0)


def test_an_image_joins_the_known_patient_of_the_most_similar_image() -> None:
    labels = table([("a", "p"), ("a", "q"), ("a", None), ("a", None), ("b", None), ("b", None), ("b", None)])
    pairs = [Pair("i1", "i2", False), Pair("i0", "i2", False), Pair("i0", "i1", True)]
    group, held_out = group_rows(labels, Neighbours(pairs, True), 2)
    assert group[2] == group[1] != group[0] and held_out.near_duplicates_apart == 0


def test_a_class_of_copies_of_one_image_cannot_be_held_out() -> None:
    labels = table([("a", None)] * 4 + [("b", None)] * 4)
    pairs = [Pair("i4", f"i{row}", True) for row in (5, 6, 7)]
    group, _ = group_rows(labels, Neighbours(pairs, True), 3)
    with pytest.raises(UsageError, match="class b comes from one patient, or from images that are all the same"):
        assign_folds(labels, 3, 0, group)


@pytest.mark.parametrize(
    ("patients", "compared", "extract"),
    [
        (["p", "q", "r", "s"], False, "held out by patient: 4 rows of 4 patients, none on both sides"),
        ([None] * 4, True, "no patient_id: images of one patient may be on both sides, held-out figures are likely"),
        ([None] * 4, True, "near-duplicates were kept together (4 rows in 4 groups)"),
        ([None] * 4, False, "there are too few images to tell near-duplicates"),
        (["p", "q", None, "s"], True, "no patient_id for 1 of 4 rows: images of one patient may be on both sides"),
    ],
)
def test_how_rows_are_held_out_is_one_sentence(patients: list, compared: bool, extract: str) -> None:
    labels = table([("ab"[row % 2], patient) for row, patient in enumerate(patients)])
    _, held_out = group_rows(labels, Neighbours([], compared), 2)
    assert extract in held_out.sentence and "\n" not in held_out.sentence
