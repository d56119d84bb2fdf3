"""Parts of the few-shot benchmark over small data; the whole benchmark takes too long for a test."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fewshot.__main__ import FOCUS_MODES, PAPER, measure_method, method_data, summary, targets
from benchmarks.fewshot.examples import Examples
from benchmarks.fewshot.methods import ANCHOR, PromptTuning, Task, all_methods
from benchmarks.fewshot.prepare import Data, crop, embed_regions, examples, lay_over, tokens_at_cut
from benchmarks.fewshot.protocol import Budget
from medfocus.stages.tower import ImageTower
from medfocus.starter.phantoms import CLASSES, draw

LABELS = [name for name, count in (("a", 40), ("b", 20), ("c", 7)) for _ in range(count)]
PATIENTS = [f"P{row // 3}" for row in range(len(LABELS))]


@pytest.fixture(scope="module")
def data(starter_clip) -> Data:
    """Sixteen phantoms for training and eight for the test; true masks take the place of SAM2's."""
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
    tokens, focus = embed_regions(pixels, masks, tower)
    tokens |= {
        "crop": tokens_at_cut(crop(pixels, masks), tower),
        "overlay": tokens_at_cut(lay_over(pixels, masks), tower),
    }
    columns = {"image_id": [str(index) for index in indices], "label": [phantom.label for phantom in phantoms]}
    columns["patient"] = [phantom.patient for phantom in phantoms]
    return examples(tokens, tower, focus=focus, **{name: np.array(value, object) for name, value in columns.items()})


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["5%", "50%", "100%", "1 shots", "4 shots", "16 shots, natural"]))
def test_a_budget_draws_its_number_of_labels(seed: int, text: str) -> None:
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


def test_labels_are_drawn_from_few_patients() -> None:
    drawn = Budget.parse("20%").draw(LABELS, PATIENTS, 0)
    assert len({PATIENTS[row] for row in drawn}) <= len(drawn) / 2 + 3


@pytest.mark.parametrize("name", [name for name in all_methods() if name != ANCHOR])
def test_every_method_learns_its_training_set(name: str, data: Data, task: Task) -> None:
    method = all_methods()[name]
    if isinstance(method, PromptTuning):
        method.epochs = 15  # enough for sixteen images
    method.fit(task, data.training, seed=0)
    right = method.logits(data.training).argmax(1) == data.training.targets(task.classes)
    # Chance is a quarter. Zero-shot classification learns nothing, but it knows the words.
    assert right.mean() > 0.5


@pytest.mark.parametrize("name", ["linear probe", "cache model (Tip-Adapter-F)"])
def test_a_method_has_the_same_metrics_with_the_same_seed(name: str, data: Data, task: Task) -> None:
    metrics = measure_method(name, task, data.training, data.test, seed=1)
    assert metrics == measure_method(name, task, data.training, data.test, seed=1)
    method = all_methods()[name]
    method.fit(task, data.training, seed=1)
    right = method.logits(data.test).argmax(1) == data.test.targets(task.classes)
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert 0 <= metrics["expected_calibration_error"] <= 1 and metrics["temperature"] > 0


def test_the_anchor_takes_part_only_where_its_features_are(data: Data) -> None:
    names = {*all_methods(), *(f"{name}, true masks" for name in FOCUS_MODES)}
    assert set(method_data(data)) == names - {ANCHOR}
    imagenet = np.zeros((len(data.training), 1280), np.float32)
    training = replace(data.training, embeddings=data.training.embeddings | {"imagenet": imagenet})
    assert set(method_data(replace(data, training=training))) == names


def test_a_crop_enlarges_the_whole_region() -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 10:20, 40:52] = True
    pixels[0, 10:20, 40:52] = 200
    crops = crop(pixels, masks)
    bright = (crops[0, ..., 0] > 100).mean()
    assert 0.4 < bright < 0.6  # 12 of 15.6 pixels across, 10 down
    assert not crops[1].any()


def test_only_the_region_is_tinted() -> None:
    pixels = np.full((1, 8, 8, 3), 100, np.uint8)
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 2:4] = True
    overlay = lay_over(pixels, mask)
    assert (overlay[~mask] == 100).all()
    assert (overlay[mask] == np.array([154, 65, 65])).all()


def test_a_missed_target_says_so(data: Data) -> None:
    values = dict.fromkeys(all_methods(), 0.5) | {"focus: both": 0.61, PAPER: 0.7}
    rows = pd.DataFrame(
        [{"method": name, "budget": "5%", "seed": 0, "accuracy": value} for name, value in values.items()]
    )
    first, second = targets(rows, data, [Budget.parse("5%")])
    assert first.endswith(": met") and "focus: both 0.610" in first
    assert second.endswith(": MISSED")
    assert "| focus: both | 0.610 ± 0.000 |" in summary(rows)
