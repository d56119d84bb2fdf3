from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.train import assign_folds

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
    where: dict[str, set[int]] = {}
    for number, (_, patient) in enumerate(pairs):
        if patient is not None:
            where.setdefault(patient, set()).add(folds[f"i{number}"])
    assert all(len(found) == 1 for found in where.values())
    for held_out in set(folds.values()):
        learned = {label for number, (label, _) in enumerate(pairs) if folds[f"i{number}"] != held_out}
        assert learned == {label for label, _ in pairs}
    assert folds == assign_folds(labels, count, seed)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([("a", None)] * 9, "hold 1 class"),
        ([("a", None)] * 5 + [("b", None)], "class b has one example"),
        ([("a", None)] * 5 + [("b", "p"), ("b", "p")], "class b comes from one patient"),
    ],
)
def test_classes_that_cannot_be_split_are_named(pairs: list, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        assign_folds(table(pairs), 3, 0)


def test_a_patient_named_like_an_image_is_another() -> None:
    labels = table([("a", "i1"), ("a", None), ("b", None), ("b", None)])
    assert len(assign_folds(labels, 2, 0)) == 4
