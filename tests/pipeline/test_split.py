from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.train import split

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
@given(rows, st.floats(0.1, 0.5), st.integers(0, 3))
def test_no_patient_is_on_both_sides_and_every_class_is(pairs: list, share: float, seed: int) -> None:
    labels = table(pairs)
    try:
        validation = split(labels, share, seed)
    except UsageError as error:
        counts = Counter(label for label, _ in pairs)
        assert len(counts) < 2 or min(counts.values()) < 4 or "patient" in str(error)
        return
    sides = [[i for i in range(len(pairs)) if (labels["image_id"][i] in validation) == side] for side in (True, False)]
    patients = [{pairs[i][1] for i in side} - {None} for side in sides]
    assert not patients[0] & patients[1]
    for side in sides:
        assert {pairs[i][0] for i in side} == {label for label, _ in pairs}
    assert validation == split(labels, share, seed)


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
        split(table(pairs), 0.2, 0)


def test_a_patient_named_like_an_image_is_another() -> None:
    labels = table([("a", "i1"), ("a", None), ("b", None), ("b", None)])
    assert split(labels, 0.5, 0)
