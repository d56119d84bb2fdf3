"""Which labels a method gets, and how its predictions are evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.fewshot.examples import Examples
from benchmarks.fewshot.methods import Method, Task
from medfocus.pipeline.evaluation.metrics import EvaluationSet, measure
from medfocus.pipeline.models.calibration import fit_temperature

FOLDS = 3


@dataclass(frozen=True)
class Budget:
    """How many labels a method gets.

    Args:
        name: the text that describes it, such as ``5%`` or ``4 shots, natural``.
        share: labels of each class, relative to all labels of the class.
        shots: labels of each class.
        natural: draw as many labels in all without regard to the class, but at least one of each, so that they are as
            imbalanced as the source.
    """

    name: str
    share: float | None = None
    shots: int | None = None
    natural: bool = False

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget from ``5%``, ``4 shots`` or ``4 shots, natural``.

        Raises:
            ValueError: the text has another form.
        """
        amount, _, rest = text.partition(" ")
        if text.endswith("%"):
            return cls(text, share=float(text[:-1]) / 100)
        if rest in ("shots", "shots, natural"):
            return cls(text, shots=int(amount), natural=rest.endswith("natural"))
        raise ValueError(f"budget {text!r}: expected 5%, '4 shots' or '4 shots, natural'")

    def draw(self, labels: Sequence[str], patients: Sequence[str], seed: int) -> list[int]:
        """Choose labels, patient by patient in a random order.

        Args:
            labels: the class of each row.
            patients: the patient of each row.
            seed: seed of the random order.

        Returns:
            Indices of the chosen rows, ascending.
        """
        random = np.random.default_rng(seed)
        names, order = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        rank = random.permutation(len(names))[order]
        rows = np.lexsort((random.random(len(rank)), rank))
        quotas = self._quotas(np.asarray(labels, dtype=str), random)
        indices = []
        for row in rows.tolist():
            if quotas[labels[row]] > 0:
                quotas[labels[row]] -= 1
                indices.append(row)
        return sorted(indices)

    def _quotas(self, labels: np.ndarray, random: np.random.Generator) -> dict[str, int]:
        classes, counts = np.unique(labels, return_counts=True)
        if self.share is not None:
            quotas = np.maximum(1, np.round(self.share * counts)).astype(int)
        elif self.natural:
            sample = random.choice(labels, (self.shots or 0) * len(classes), replace=False)
            quotas = np.array([max(1, int((sample == name).sum())) for name in classes])
        else:
            quotas = np.minimum(self.shots or 0, counts)
        return dict(zip(classes.tolist(), quotas.tolist(), strict=True))


def cross_fitted_temperature(new: Callable[[], Method], task: Task, examples: Examples, seed: int) -> float:
    """Fit the temperature of a method's logits by cross-validation over its own labels.

    Each of three folds gets its logits from a method fitted to the others. No patient is in two folds.

    Args:
        new: makes an unfitted method.
        task: what all methods share.
        examples: the labelled examples.
        seed: seed of the folds and of the fits.

    Returns:
        The temperature; 1 where a class has a single label, so that nothing can be rest out.
    """
    targets = examples.targets(task.classes)
    folds = min(FOLDS, int(np.bincount(targets)[np.unique(targets)].min()))
    if folds < 2:
        return 1.0
    held_out = np.zeros((len(targets), len(task.classes)))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for training, rest in splitter.split(targets, targets, examples.patient):
        method = new()
        method.fit(task, examples.take(training), seed)
        held_out[rest] = method.logits(examples.take(rest))
    return fit_temperature(held_out, targets)


def evaluate_logits(
    logits: np.ndarray, temperature: float, targets: np.ndarray, classes: tuple[str, ...]
) -> dict[str, float]:
    """Metrics of one method on the test rows, as the command ``evaluate`` computes them.

    Args:
        logits: float [N, C].
        temperature: divides the logits.
        targets: index of the class, int64 [N].
        classes: names of the classes.
    """
    probabilities = softmax(logits / temperature, axis=1)
    accepted, patients = np.ones(len(targets), bool), np.arange(len(targets))
    test_set = EvaluationSet(targets, probabilities, accepted=accepted, patients=patients, classes=classes)
    predicted = probabilities.argmax(1)
    values = {name: entry["value"] for name, entry in measure(test_set, resamples=1, bins=15, seed=0).items()}
    return {
        "accuracy": values["accuracy"],
        "macro_f1": f1_score(targets, predicted, average="macro", labels=range(len(classes)), zero_division=0),
        "macro_auroc": values["macro_auroc"],
        "sensitivity": float(np.mean([values[f"sensitivity/{name}"] for name in classes])),
        "specificity": float(np.mean([values[f"specificity/{name}"] for name in classes])),
        "expected_calibration_error": values["expected_calibration_error"],
    }
