"""Which labels a method may see, and how its answers are judged."""

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
    """How many labels: a share of all, in the classes' own proportions, or shots of each class.

    ``natural`` shots are as many labels in all, drawn without regard to the class but one of each: as imbalanced as
    the source.
    """

    name: str
    share: float | None = None
    shots: int | None = None
    natural: bool = False

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """``5%``, ``4 shots`` or ``4 shots, natural``.

        Raises:
            ValueError: it is none of them.
        """
        amount, _, rest = text.partition(" ")
        if text.endswith("%"):
            return cls(text, share=float(text[:-1]) / 100)
        if rest in ("shots", "shots, natural"):
            return cls(text, shots=int(amount), natural=rest.endswith("natural"))
        raise ValueError(f"budget {text!r}: expected 5%, '4 shots' or '4 shots, natural'")

    def draw(self, labels: Sequence[str], patients: Sequence[str], seed: int) -> list[int]:
        """Indices of the labels that are given, whole patients first to last in a random order."""
        random = np.random.default_rng(seed)
        names, order = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        rank = random.permutation(len(names))[order]
        rows = np.lexsort((random.random(len(rank)), rank))
        left = self._quotas(np.asarray(labels, dtype=str), random)
        chosen = []
        for row in rows.tolist():
            if left[labels[row]] > 0:
                left[labels[row]] -= 1
                chosen.append(row)
        return sorted(chosen)

    def _quotas(self, labels: np.ndarray, random: np.random.Generator) -> dict[str, int]:
        classes, counts = np.unique(labels, return_counts=True)
        if self.share is not None:
            wanted = np.maximum(1, np.round(self.share * counts)).astype(int)
        elif self.natural:
            drawn = random.choice(labels, (self.shots or 0) * len(classes), replace=False)
            wanted = np.array([max(1, int((drawn == name).sum())) for name in classes])
        else:
            wanted = np.minimum(self.shots or 0, counts)
        return dict(zip(classes.tolist(), wanted.tolist(), strict=True))


def cross_fitted_temperature(new: Callable[[], Method], task: Task, examples: Examples, seed: int) -> float:
    """The temperature of logits that each third of the budget's labels gets from the other two, patients kept whole.

    1 where a class has one label only: then nothing can be held out.
    """
    targets = examples.targets(task.classes)
    folds = min(FOLDS, int(np.bincount(targets)[np.unique(targets)].min()))
    if folds < 2:
        return 1.0
    held_out = np.zeros((len(targets), len(task.classes)))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for training, other in splitter.split(targets, targets, examples.patient):
        method = new()
        method.fit(task, examples.take(training), seed)
        held_out[other] = method.logits(examples.take(other))
    return fit_temperature(held_out, targets)


def judge(logits: np.ndarray, degree: float, targets: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """The figures of one method on the test rows, as ``evaluate`` has them; ``degree`` is its temperature."""
    chances = softmax(logits / degree, axis=1)
    everyone = np.ones(len(targets), bool)
    judged = EvaluationSet(targets, chances, accepted=everyone, patients=np.arange(len(targets)), classes=classes)
    values = {name: entry["value"] for name, entry in measure(judged, resamples=1, bins=15, seed=0).items()}
    return {
        "accuracy": values["accuracy"],
        "macro_f1": f1_score(targets, chances.argmax(1), average="macro", labels=range(len(classes)), zero_division=0),
        "macro_auroc": values["macro_auroc"],
        "sensitivity": float(np.mean([values[f"sensitivity/{name}"] for name in classes])),
        "specificity": float(np.mean([values[f"specificity/{name}"] for name in classes])),
        "expected_calibration_error": values["expected_calibration_error"],
    }
