"""The few-shot benchmark's parts, small; the whole of it is run by hand."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fewshot.__main__ import OURS, PAPERS, _contests, contest, summary, targets
from benchmarks.fewshot.examples import Examples
from benchmarks.fewshot.methods import ANCHOR, PromptTuning, Task, all_methods
from benchmarks.fewshot.prepare import Data, _embed, _lower, crop, examples, lay_over
from benchmarks.fewshot.protocol import Budget
from medfocus.stages.tower import ImageTower
from medfocus.starter.phantoms import CLASSES, draw

LABELS = [name for name, count in (("a", 40), ("b", 20), ("c", 7)) for _ in range(count)]
PATIENTS = [f"P{row // 3}" for row in range(len(LABELS))]


@pytest.fixture(scope="module")
def data(starter_clip) -> Data:
    """Sixteen phantoms to learn from and eight to be tested on, with their true masks for SAM2's."""
    training, test = (_examples(starter_clip, range(start, stop)) for start, stop in ((0, 16), (16, 24)))
    return Data("phantoms-hard", training, test, training, test)


@pytest.fixture(scope="module")
def task(starter_clip, starter_tokenizer) -> Task:
    return Task(starter_clip, starter_tokenizer, tuple(sorted(CLASSES)), 4)


def _examples(clip, indices: range) -> Examples:
    phantoms = [draw(index, seed=9, preset="easy") for index in indices]
    pixels = np.stack([phantom.image for phantom in phantoms])[..., None].repeat(3, -1)
    masks = np.stack([phantom.lesions.any(0) for phantom in phantoms])
    tower = ImageTower(clip, 4)
    tokens, focus = _embed(pixels, masks, tower)
    tokens |= {"crop": _lower(crop(pixels, masks), tower), "overlay": _lower(lay_over(pixels, masks), tower)}
    columns = {"image_id": [str(index) for index in indices], "label": [phantom.label for phantom in phantoms]}
    columns["patient"] = [phantom.patient for phantom in phantoms]
    return examples(tokens, tower, focus=focus, **{name: np.array(value, object) for name, value in columns.items()})


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["5%", "50%", "100%", "1 shots", "4 shots", "16 shots, natural"]))
def test_a_budget_draws_what_it_says(seed: int, text: str) -> None:
    drawn = Budget.parse(text).draw(LABELS, PATIENTS, seed)
    counts = Counter(LABELS[row] for row in drawn)
    assert len(set(drawn)) == len(drawn) and set(counts) == {"a", "b", "c"}
    expected = {
        "5%": {"a": 2, "b": 1, "c": 1},
        "50%": {"a": 20, "b": 10, "c": 4},
        "100%": {"a": 40, "b": 20, "c": 7},
        "1 shots": {"a": 1, "b": 1, "c": 1},
        "4 shots": {"a": 4, "b": 4, "c": 4},
    }
    if text in expected:
        assert counts == expected[text]
    else:
        assert 48 <= len(drawn) <= 50 and counts["a"] > counts["c"]
    assert drawn == Budget.parse(text).draw(LABELS, PATIENTS, seed)


def test_few_patients_give_the_few_labels() -> None:
    drawn = Budget.parse("20%").draw(LABELS, PATIENTS, 0)
    assert len({PATIENTS[row] for row in drawn}) <= len(drawn) / 2 + 3


@pytest.mark.parametrize("name", [name for name in all_methods() if name != ANCHOR])
def test_every_method_learns_its_training_set(name: str, data: Data, task: Task) -> None:
    method = all_methods()[name]
    if isinstance(method, PromptTuning):
        method.epochs = 15  # enough for sixteen images
    method.fit(task, data.training, seed=0)
    right = method.logits(data.training).argmax(1) == data.training.targets(task.classes)
    # A quarter is chance; zero-shot learns nothing, but knows the words.
    assert right.mean() > 0.5


@pytest.mark.parametrize("name", ["linear probe", "cache model (Tip-Adapter-F)"])
def test_a_contest_is_the_same_again(name: str, data: Data, task: Task) -> None:
    figures = contest(name, task, data.training, data.test, seed=1)
    assert figures == contest(name, task, data.training, data.test, seed=1)
    assert 0 <= figures["expected_calibration_error"] <= 1 and figures["temperature"] > 0


def test_the_anchor_takes_part_only_where_its_features_are(data: Data) -> None:
    contests = _contests(data)
    assert (ANCHOR in contests) == ("imagenet" in data.training.embeddings)
    assert {f"{name}, true masks" for name in OURS} <= set(contests)


def test_a_crop_shows_all_of_the_region_enlarged() -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 10:20, 40:52] = True
    pixels[0, 10:20, 40:52] = 200
    shown = crop(pixels, masks)
    bright = (shown[0, ..., 0] > 100).mean()
    assert 0.4 < bright < 0.6  # 12 of 15.6 pixels across, 10 down
    assert not shown[1].any()


def test_only_the_region_is_tinted() -> None:
    pixels = np.full((1, 8, 8, 3), 100, np.uint8)
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 2:4] = True
    laid = lay_over(pixels, mask)
    assert (laid[~mask] == 100).all()
    assert (laid[mask] == np.array([154, 65, 65])).all()


def test_a_target_that_is_missed_says_so(data: Data) -> None:
    values = dict.fromkeys(all_methods(), 0.5) | {"focus: both": 0.61, PAPERS: 0.7}
    rows = pd.DataFrame(
        [{"method": name, "budget": "5%", "seed": 0, "accuracy": value} for name, value in values.items()]
    )
    first, second = targets(rows, data, [Budget.parse("5%")])
    assert first.endswith(": met") and "focus: both 0.610" in first
    assert second.endswith(": MISSED")
    assert "| focus: both | 0.610 ± 0.000 |" in summary(rows)
