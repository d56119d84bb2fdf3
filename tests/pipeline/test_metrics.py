import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from pipeline.metrics import Judged, calibration, confusion, measure
from pipeline.metrics import _Ranks as Ranks


def judged(rows: int = 300, classes: int = 3, seed: int = 0, patients: int | None = None) -> Judged:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    who = np.array([f"p{number}" for number in (random.integers(0, patients, rows) if patients else range(rows))])
    return Judged(truth, probabilities, probabilities.max(1) > 0.6, who, tuple("abcdef"[:classes]))


def run(sample: Judged, resamples: int = 200, bins: int = 15, seed: int = 0) -> dict:
    return measure(sample, resamples=resamples, bins=bins, seed=seed)


def test_values_equal_scikit_learn_s() -> None:
    sample = judged()
    found = {name: entry["value"] for name, entry in run(sample).items()}
    assert found["accuracy"] == pytest.approx(accuracy_score(sample.truth, sample.predicted))
    expected = roc_auc_score(sample.truth, sample.probabilities, multi_class="ovr", average="macro")
    assert found["macro_auroc"] == pytest.approx(expected)
    for index, name in enumerate(sample.classes):
        positive, called = sample.truth == index, sample.predicted == index
        assert found[f"sensitivity/{name}"] == pytest.approx(recall_score(positive, called))
        assert found[f"specificity/{name}"] == pytest.approx(recall_score(~positive, ~called))
    accepted = sample.accepted
    assert found["coverage"] == pytest.approx(accepted.mean())
    assert found["accepted_accuracy"] == pytest.approx((sample.predicted == sample.truth)[accepted].mean())


def test_calibration_error_equals_its_definition() -> None:
    sample, bins = judged(seed=3), 10
    confidence, right = sample.probabilities.max(1), sample.predicted == sample.truth
    expected = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert run(sample, bins=bins)["expected_calibration_error"]["value"] == pytest.approx(expected)
    means, accuracies, rows = calibration(sample, bins)
    filled = rows > 0
    by_bins = (rows[filled] / rows.sum() * np.abs(means[filled] - accuracies[filled])).sum()
    assert by_bins == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weighted_auroc_equals_scikit_learn_s_with_ties(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 30))
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)), float)
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), float)
    found = Ranks(scores, positive).auroc(weights)
    if not (weights[positive].sum() and weights[~positive].sum()):
        assert np.isnan(found)
        return
    kept = weights > 0
    assert found == pytest.approx(roc_auc_score(positive[kept], scores[kept], sample_weight=weights[kept]))


def test_intervals_hold_the_value_and_follow_the_seed() -> None:
    sample = judged()
    found = run(sample)
    for entry in found.values():
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert found == run(sample) != run(sample, seed=1)


def test_interval_of_accuracy_is_about_the_normal_one() -> None:
    sample = judged(rows=1000)
    entry = run(sample, resamples=1000)["accuracy"]
    half = 1.96 * np.sqrt(entry["value"] * (1 - entry["value"]) / 1000)
    assert (entry["high"] - entry["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_images_of_one_patient_are_drawn_together() -> None:
    """Every image ten times under one patient carries no more information than once."""
    once = judged(rows=80)
    rows = np.repeat(np.arange(80), 10)
    many = once.only(rows)
    narrow, wide = run(once)["accuracy"], run(many)["accuracy"]
    assert wide["high"] - wide["low"] == pytest.approx(narrow["high"] - narrow["low"], rel=0.25)


def test_a_class_without_rows_is_not_defined_and_does_not_spoil_the_rest() -> None:
    sample = judged()
    sample = sample.only(sample.truth != 2)
    found = run(sample, resamples=20)
    assert found["sensitivity/c"] == {"value": None, "low": None, "high": None, "resamples": 0}
    aurocs = [roc_auc_score(sample.truth == index, sample.probabilities[:, index]) for index in (0, 1)]
    assert found["macro_auroc"]["value"] == pytest.approx(np.mean(aurocs))


def test_confusion_counts_every_row() -> None:
    sample = judged()
    counts = confusion(sample)
    assert counts.sum() == len(sample.truth) and np.trace(counts) == (sample.predicted == sample.truth).sum()
