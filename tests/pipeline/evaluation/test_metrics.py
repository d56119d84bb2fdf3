import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from medfocus.pipeline.evaluation.metrics import (
    EvaluationSet,
    WeightedAuroc,
    as_lines,
    calibration,
    confusion,
    measure,
)


def draw_sample(rows: int = 300, classes: int = 3, seed: int = 0, patients: int | None = None) -> EvaluationSet:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    patient = np.array([f"p{number}" for number in (random.integers(0, patients, rows) if patients else range(rows))])
    return EvaluationSet(truth, probabilities, probabilities.max(1) > 0.6, patient, tuple("abcdef"[:classes]))


def run(sample: EvaluationSet, resamples: int = 200, bins: int = 15, seed: int = 0) -> dict:
    return measure(sample, resamples=resamples, bins=bins, seed=seed)


def test_values_equal_scikit_learn_s() -> None:
    sample = draw_sample()
    metrics = {name: entry["value"] for name, entry in run(sample).items()}
    assert metrics["accuracy"] == pytest.approx(accuracy_score(sample.truth, sample.predicted))
    expected = roc_auc_score(sample.truth, sample.probabilities, multi_class="ovr", average="macro")
    assert metrics["macro_auroc"] == pytest.approx(expected)
    for index, name in enumerate(sample.classes):
        positive, called = sample.truth == index, sample.predicted == index
        assert metrics[f"sensitivity/{name}"] == pytest.approx(recall_score(positive, called))
        assert metrics[f"specificity/{name}"] == pytest.approx(recall_score(~positive, ~called))
    accepted = sample.accepted
    assert metrics["coverage"] == pytest.approx(accepted.mean())
    assert metrics["accepted_accuracy"] == pytest.approx((sample.predicted == sample.truth)[accepted].mean())


def test_calibration_error_equals_its_definition() -> None:
    sample, bins = draw_sample(seed=3), 10
    confidence, correct = sample.probabilities.max(1), sample.predicted == sample.truth
    expected = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
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
    area = WeightedAuroc(scores, positive)(weights)
    if not (weights[positive].sum() and weights[~positive].sum()):
        assert np.isnan(area)
        return
    kept = weights > 0
    assert area == pytest.approx(roc_auc_score(positive[kept], scores[kept], sample_weight=weights[kept]))


def test_intervals_hold_the_value_and_follow_the_seed() -> None:
    sample = draw_sample()
    metrics = run(sample)
    for entry in metrics.values():
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert metrics == run(sample) != run(sample, seed=1)


def test_interval_of_accuracy_is_about_the_normal_one() -> None:
    sample = draw_sample(rows=1000)
    entry = run(sample, resamples=1000)["accuracy"]
    half = 1.96 * np.sqrt(entry["value"] * (1 - entry["value"]) / 1000)
    assert (entry["high"] - entry["low"]) / 2 == pytest.approx(half, rel=0.15)


def test_images_of_one_patient_are_drawn_together() -> None:
    """Every image ten times under one patient carries no more information than once."""
    once = draw_sample(rows=80)
    rows = np.repeat(np.arange(80), 10)
    many = once.only(rows)
    narrow, wide = run(once)["accuracy"], run(many)["accuracy"]
    assert wide["high"] - wide["low"] == pytest.approx(narrow["high"] - narrow["low"], rel=0.25)


def test_a_class_without_rows_is_not_defined_and_does_not_spoil_the_rest() -> None:
    sample = draw_sample()
    sample = sample.only(sample.truth != 2)
    metrics = run(sample, resamples=20)
    assert metrics["sensitivity/c"] == {"value": None, "low": None, "high": None, "resamples": 0, "undefined": 20}
    assert metrics["macro_auroc"]["left_out"] == ["c"]
    aurocs = [roc_auc_score(sample.truth == index, sample.probabilities[:, index]) for index in (0, 1)]
    assert metrics["macro_auroc"]["value"] == pytest.approx(np.mean(aurocs))


def test_one_class_alone_leaves_no_auroc() -> None:
    sample = draw_sample()
    metrics = run(sample.only(sample.truth == 1), resamples=20)
    assert metrics["macro_auroc"]["value"] is None and metrics["macro_auroc"]["left_out"] == ["a", "b", "c"]
    assert metrics["specificity/b"]["value"] is None and metrics["sensitivity/b"]["resamples"] == 20


def test_resamples_without_a_rare_class_are_left_out_and_counted() -> None:
    """One row of a class: it is absent from (1 - 1/N)^N, about e^-1, of the resamples, and macro-AUROC with it."""
    sample = draw_sample(rows=60)
    sample = sample.only((sample.truth != 2) | (np.arange(60) == np.flatnonzero(sample.truth == 2)[0]))
    metrics = run(sample, resamples=1000)
    for name in ("macro_auroc", "sensitivity/c"):
        assert metrics[name]["undefined"] == pytest.approx(1000 * np.exp(-1), abs=60)
        assert metrics[name]["undefined"] + metrics[name]["resamples"] == 1000
    assert metrics["macro_auroc"]["left_out"] == [] and metrics["accuracy"]["undefined"] == 0
    line = next(line for line in as_lines("all", metrics) if "macro_auroc" in line)
    assert f"not defined in {metrics['macro_auroc']['undefined']} of 1000 resamples" in line


def test_intervals_equal_a_bootstrap_that_copies_rows() -> None:
    """Weights stand for drawn rows: the same draws, made by copying the rows of each patient, give the same ends."""
    sample = draw_sample(rows=60, patients=20, seed=5)
    names, patient = np.unique(sample.patients, return_inverse=True)
    random = np.random.default_rng(7)
    accuracies, aurocs = [], []
    for _ in range(100):
        drawn = random.integers(len(names), size=len(names))
        copy = sample.only(np.concatenate([np.flatnonzero(patient == number) for number in drawn]))
        accuracies.append(accuracy_score(copy.truth, copy.predicted))
        aurocs.append(roc_auc_score(copy.truth, copy.probabilities, multi_class="ovr", average="macro"))
    metrics = run(sample, resamples=100, seed=7)
    for name, values in (("accuracy", accuracies), ("macro_auroc", aurocs)):
        assert [metrics[name]["low"], metrics[name]["high"]] == pytest.approx(np.percentile(values, (2.5, 97.5)))


def test_confusion_counts_each_pair_of_classes() -> None:
    sample = draw_sample()
    counts = confusion(sample.only(sample.truth != 2))
    for truth, predicted in np.ndindex(3, 3):
        rows = (sample.truth == truth) & (sample.predicted == predicted)
        assert counts[truth, predicted] == (0 if truth == 2 else rows.sum())
