"""Metrics of classification with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix


@dataclass(frozen=True)
class EvaluationSet:
    """Predictions of N images with their labels.

    Args:
        truth: int64 [N], the true class.
        probabilities: float [N, C].
        accepted: bool [N], whether the decision was ``accept``.
        patients: int or str [N], the patient; a resample draws all images of a patient together. An image whose patient
            is not known has a patient of its own.
        classes: names of the C classes.
    """

    truth: np.ndarray
    probabilities: np.ndarray
    accepted: np.ndarray
    patients: np.ndarray
    classes: tuple[str, ...]

    def only(self, rows: np.ndarray) -> "EvaluationSet":
        """The rows that a bool [N] or positions int64 [n] select."""
        return EvaluationSet(
            self.truth[rows], self.probabilities[rows], self.accepted[rows], self.patients[rows], self.classes
        )

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], the class of the highest probability."""
        return self.probabilities.argmax(1)


def confusion(sample: EvaluationSet) -> np.ndarray:
    """Confusion matrix: counts int64 [C, C], true class by predicted class."""
    return confusion_matrix(sample.truth, sample.predicted, labels=range(len(sample.classes)))


def calibration(sample: EvaluationSet, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bins of a reliability diagram (arXiv 1706.04599, equations 1 and 2).

    Args:
        sample: predictions with their labels.
        bins: number of bins of equal width, open below and closed above.

    Returns:
        Mean confidence, accuracy and number of rows of each bin, float64 [bins] each; the first two are nan where a bin
        is empty.
    """
    index, confidence, correct = _bin_rows(sample, bins)
    rows = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (
            np.bincount(index, confidence, bins) / rows,
            np.bincount(index, correct, bins) / rows,
            rows.astype(float),
        )


def measure(sample: EvaluationSet, *, resamples: int, bins: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every metric with its 95 % percentile interval from a bootstrap over patients (Efron 1979).

    The metrics are accuracy; macro-AUROC, one class against the rest, over the classes that have both positive and
    negative rows; sensitivity and specificity of each class; the expected calibration error over bins of equal width
    (arXiv 1706.04599, equation 3); coverage, the share of accepted predictions; and the accuracy of these.

    Memory is that of a few arrays of N and of one number for each metric and resample.

    Args:
        sample: predictions with their labels, N at least 1.
        resamples: number of resamples of the bootstrap.
        bins: number of bins of the calibration error.
        seed: seed of the resampling.

    Returns:
        By name ``{"value", "low", "high", "resamples", "undefined"}``. A value that is not defined, as the sensitivity
        of a class without a row, is None. The interval leaves out resamples in which the metric is not defined:
        ``resamples`` counts those behind the interval, ``undefined`` the others. Macro-AUROC is not defined in a
        resample where one of its classes is not. ``macro_auroc`` also has ``left_out``, the names of the classes that
        it does not cover.
    """
    metrics = _WeightedMetrics(sample, bins)
    value = metrics(np.ones(len(sample.truth)))
    _, patient = np.unique(sample.patients, return_inverse=True)
    patients = patient.max() + 1
    random = np.random.default_rng(seed)
    resampled = np.stack(
        [
            metrics(np.bincount(random.integers(patients, size=patients), minlength=patients)[patient])
            for _ in range(resamples)
        ]
    )
    result: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(metrics.names):
        defined = resampled[np.isfinite(resampled[:, index]), index]
        low, high = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
        numbers = {"value": value[index], "low": low, "high": high}
        result[name] = {key: float(number) if np.isfinite(number) else None for key, number in numbers.items()}
        result[name] |= {"resamples": len(defined), "undefined": resamples - len(defined)}
    result["macro_auroc"]["left_out"] = metrics.left_out
    return result


def _bin_rows(sample: EvaluationSet, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibration bin, confidence and correctness (0 or 1) of each row."""
    confidence = sample.probabilities.max(1).astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are open below, closed above
    return index, confidence, (sample.predicted == sample.truth).astype(np.float64)


class _WeightedMetrics:
    """All metrics of one sample for any row weights; what does not depend on the weights is computed once.

    Args:
        sample: predictions with their labels.
        bins: number of bins of the calibration error.
    """

    def __init__(self, sample: EvaluationSet, bins: int):
        self.sample, self.bins = sample, bins
        self.count = len(sample.classes)
        self.bin, self.confidence, self.correct = _bin_rows(sample, bins)
        rows = np.bincount(sample.truth, minlength=self.count)
        covered = (rows > 0) & (rows < len(sample.truth))
        # The classes are fixed: a macro average over the classes that a resample happens to hold is another metric.
        self.aurocs = [WeightedAuroc(sample.probabilities[:, c], sample.truth == c) for c in np.flatnonzero(covered)]
        self.left_out = [name for name, is_covered in zip(sample.classes, covered, strict=True) if not is_covered]
        self.pair = sample.truth * self.count + sample.predicted
        self.names = ["accuracy", "macro_auroc", "expected_calibration_error", "coverage", "accepted_accuracy"]
        self.names += [f"sensitivity/{name}" for name in sample.classes]
        self.names += [f"specificity/{name}" for name in sample.classes]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The metrics in the order of ``names``, float64; nan where one is not defined."""
        weights = weights.astype(np.float64)
        table = np.bincount(self.pair, weights, self.count**2).reshape(self.count, self.count)
        total, hits = table.sum(), np.diag(table)
        positive, called = table.sum(1), table.sum(0)
        accepted = weights * self.sample.accepted
        aurocs = [auroc(weights) for auroc in self.aurocs]
        gap = np.bincount(self.bin, weights * (self.confidence - self.correct), self.bins)
        with np.errstate(invalid="ignore", divide="ignore"):
            overall = [
                hits.sum() / total,
                np.mean(aurocs) if aurocs else np.nan,
                np.abs(gap).sum() / total,
                accepted.sum() / total,
                (accepted * self.correct).sum() / accepted.sum(),
            ]
            specificity = (total - positive - called + hits) / (total - positive)
            return np.concatenate([overall, hits / positive, specificity])


class WeightedAuroc:
    """Area under the ROC curve of one class for any row weights; ties count half (Mann and Whitney 1947).

    Args:
        scores: float [N].
        positive: bool [N], whether the row belongs to the class.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        self.positive, negative = np.flatnonzero(positive), np.flatnonzero(~positive)
        # Both are sorted once: a resample then takes sums along them, and no sort.
        self.negative = negative[np.argsort(scores[negative])]
        self.positive = self.positive[np.argsort(scores[self.positive])]
        negative_scores, positive_scores = scores[self.negative], scores[self.positive]
        self.below = np.searchsorted(negative_scores, positive_scores, "left")
        self.up_to = np.searchsorted(negative_scores, positive_scores, "right")

    def __call__(self, weights: np.ndarray) -> float:
        """Weighted share of the pairs of a positive and a negative row that the scores order correctly.

        Args:
            weights: float64 [N].

        Returns:
            The area, 0 to 1; nan where the positive or the negative rows have no weight.
        """
        positive = weights[self.positive]
        negative = np.concatenate([[0.0], np.cumsum(weights[self.negative])])
        pairs = positive.sum() * negative[-1]
        if not pairs:
            return float("nan")
        # Not ``@``: BLAS starts threads for it, which takes five times as long as the sum on a busy machine.
        return float((positive * (negative[self.below] + negative[self.up_to])).sum() / (2 * pairs))


def as_lines(title: str, metrics: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """The metrics as aligned lines of text.

    Args:
        title: first line.
        metrics: what ``measure`` returns.
    """
    width = max(len(name) for name in metrics)
    return [title, *(f"  {name:<{width}}  {_format(entry)}" for name, entry in metrics.items())]


def _format(entry: Mapping[str, Any]) -> str:
    """The value of a metric, its interval, and why either is incomplete."""
    if entry["value"] is None:
        return "not defined"
    interval = "-" if entry["low"] is None else f"{entry['low']:.3f}, {entry['high']:.3f}"
    notes = []
    if entry.get("left_out"):
        notes.append(f"without {', '.join(entry['left_out'])}: no such label, or no other")
    if entry["undefined"]:
        notes.append(f"not defined in {entry['undefined']} of {entry['undefined'] + entry['resamples']} resamples")
    return f"{entry['value']:.3f}  [{interval}]" + (f"  ({'; '.join(notes)})" if notes else "")
