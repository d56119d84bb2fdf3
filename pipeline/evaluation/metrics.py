"""How good predictions are: metrics of classification with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix


@dataclass(frozen=True)
class EvaluationSet:
    """Predictions with their truth.

    Args:
        truth: int64 [N], the true class.
        probabilities: float [N, C].
        accepted: bool [N], whether the decision was ``accept``.
        patients: int or str [N], what is drawn together in a resample (an image without a patient is its own).
        classes: names of the C classes.
    """

    truth: np.ndarray
    probabilities: np.ndarray
    accepted: np.ndarray
    patients: np.ndarray
    classes: tuple[str, ...]

    def only(self, rows: np.ndarray) -> "EvaluationSet":
        """The rows that a bool [N] chooses."""
        return EvaluationSet(
            self.truth[rows], self.probabilities[rows], self.accepted[rows], self.patients[rows], self.classes
        )

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(1)


def confusion(judged: EvaluationSet) -> np.ndarray:
    """Counts int64 [C, C], true class by predicted class."""
    return confusion_matrix(judged.truth, judged.predicted, labels=range(len(judged.classes)))


def calibration(judged: EvaluationSet, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and row count of each bin of equal width, float64 [bins] (nan where empty)."""
    index, confidence, right = _binned(judged, bins)
    rows = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (
            np.bincount(index, confidence, bins) / rows,
            np.bincount(index, right, bins) / rows,
            rows.astype(float),
        )


def measure(judged: EvaluationSet, *, resamples: int, bins: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every metric with its 95 % percentile interval of a bootstrap over patients (Efron 1979).

    Accuracy; macro-AUROC, one against the rest, over the classes that have both sides in ``judged``; sensitivity
    and specificity of each class; expected calibration error over bins of equal width (arXiv 1706.04599, equation 3);
    coverage, the share that is accepted; and the accuracy of what is accepted.

    Args:
        judged: predictions with their truth, N at least 1.
        resamples: of the bootstrap.
        bins: of the calibration error.
        seed: of the resampling.

    Returns:
        By name ``{"value", "low", "high", "resamples", "undefined"}``. A value that is not defined (a class without a
        row) is None. Resamples in which it is not (of macro-AUROC: one of its classes is not) are left out of the
        interval: ``resamples`` counts those behind it, ``undefined`` the others. ``macro_auroc`` also has ``left_out``,
        the names of the classes it is not about.

    Memory is that of a few arrays of N and of one number a metric and resample.
    """
    scorer = _Scorer(judged, bins)
    value = scorer(np.ones(len(judged.truth)))
    _, patient = np.unique(judged.patients, return_inverse=True)
    patients = patient.max() + 1
    random = np.random.default_rng(seed)
    drawn = np.stack(
        [
            scorer(np.bincount(random.integers(patients, size=patients), minlength=patients)[patient])
            for _ in range(resamples)
        ]
    )
    result: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(scorer.names):
        defined = drawn[np.isfinite(drawn[:, index]), index]
        low, high = np.percentile(defined, (2.5, 97.5)) if len(defined) else (np.nan, np.nan)
        numbers = {"value": value[index], "low": low, "high": high}
        result[name] = {key: float(number) if np.isfinite(number) else None for key, number in numbers.items()}
        result[name] |= {"resamples": len(defined), "undefined": resamples - len(defined)}
    result["macro_auroc"]["left_out"] = scorer.left_out
    return result


def _binned(judged: EvaluationSet, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    confidence = judged.probabilities.max(1).astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are open below, closed above
    return index, confidence, (judged.predicted == judged.truth).astype(np.float64)


class _Scorer:
    """All metrics of one sample under row weights; what does not depend on the weights is made once."""

    def __init__(self, judged: EvaluationSet, bins: int):
        self.judged, self.bins = judged, bins
        self.count = len(judged.classes)
        self.bin, self.confidence, self.right = _binned(judged, bins)
        present = np.bincount(judged.truth, minlength=self.count)
        both_sides = (present > 0) & (present < len(judged.truth))
        # Fixed once: a macro average over the classes that a resample happens to hold would be another metric.
        self.ranks = [_Ranks(judged.probabilities[:, c], judged.truth == c) for c in np.flatnonzero(both_sides)]
        self.left_out = [name for name, there in zip(judged.classes, both_sides, strict=True) if not there]
        self.pair = judged.truth * self.count + judged.predicted
        self.names = ["accuracy", "macro_auroc", "expected_calibration_error", "coverage", "accepted_accuracy"]
        self.names += [f"sensitivity/{name}" for name in judged.classes]
        self.names += [f"specificity/{name}" for name in judged.classes]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The metrics in the order of ``names``, float64; nan where one is not defined."""
        weights = weights.astype(np.float64)
        table = np.bincount(self.pair, weights, self.count**2).reshape(self.count, self.count)
        total, hit = table.sum(), np.diag(table)
        positive, called = table.sum(1), table.sum(0)
        accepted = weights * self.judged.accepted
        aurocs = [ranks.auroc(weights) for ranks in self.ranks]
        gap = np.bincount(self.bin, weights * (self.confidence - self.right), self.bins)
        with np.errstate(invalid="ignore", divide="ignore"):
            head = [
                hit.sum() / total,
                np.mean(aurocs) if aurocs else np.nan,
                np.abs(gap).sum() / total,
                accepted.sum() / total,
                (accepted * self.right).sum() / accepted.sum(),
            ]
            specificity = (total - positive - called + hit) / (total - positive)
            return np.concatenate([head, hit / positive, specificity])


class _Ranks:
    """Area under the ROC curve of one class for any row weights, ties counted half (Mann-Whitney)."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        self.positive, negative = np.flatnonzero(positive), np.flatnonzero(~positive)
        # Both sorted once, so that a resample costs sums along them and no sort.
        self.negative = negative[np.argsort(scores[negative])]
        self.positive = self.positive[np.argsort(scores[self.positive])]
        ordered, mine = scores[self.negative], scores[self.positive]
        self.below, self.up_to = np.searchsorted(ordered, mine, "left"), np.searchsorted(ordered, mine, "right")

    def auroc(self, weights: np.ndarray) -> float:
        """Weighted share of the pairs in the right order; nan where a side has no weight. Weights float64 [N]."""
        positive = weights[self.positive]
        negative = np.concatenate([[0.0], np.cumsum(weights[self.negative])])
        pairs = positive.sum() * negative[-1]
        if not pairs:
            return float("nan")
        # Not ``@``: BLAS starts threads for it, which costs five times the sum on a busy machine.
        return float((positive * (negative[self.below] + negative[self.up_to])).sum() / (2 * pairs))


def as_lines(title: str, metrics: dict[str, dict[str, Any]]) -> Sequence[str]:
    """The metrics as aligned lines for a person."""
    width = max(len(name) for name in metrics)
    return [title, *(f"  {name:<{width}}  {_shown(entry)}" for name, entry in metrics.items())]


def _shown(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "not defined"
    interval = "-" if entry["low"] is None else f"{entry['low']:.3f}, {entry['high']:.3f}"
    notes = []
    if entry.get("left_out"):
        notes.append(f"without {', '.join(entry['left_out'])}: no such label, or no other")
    if entry["undefined"]:
        notes.append(f"not defined in {entry['undefined']} of {entry['undefined'] + entry['resamples']} resamples")
    return f"{entry['value']:.3f}  [{interval}]" + (f"  ({'; '.join(notes)})" if notes else "")
