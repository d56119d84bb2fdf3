"""How sure a model may be of its probabilities, and from what confidence a prediction is accepted."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

# Above every confidence: nothing is accepted.
ACCEPT_NONE = 1.01
_LOWEST, _HIGHEST = np.log(0.02), np.log(50.0)


@dataclass(frozen=True)
class Calibration:
    """What a model's logits are divided by, and the confidence from which its predictions are accepted."""

    temperature: float
    accept_at: float


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature, 0.02 to 50, under which held-out rows are most likely (arXiv 1706.04599, section 4.2).

    Args:
        logits: float [N, C] of rows that the model was not fitted to.
        targets: int64 [N], their classes.
    """

    def loss(logarithm: float) -> float:
        chances = log_softmax(np.asarray(logits, np.float64) / np.exp(logarithm), axis=1)
        return -float(chances[np.arange(len(targets)), targets].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(_LOWEST, _HIGHEST), method="bounded").x))


def fit_threshold(probabilities: np.ndarray, targets: np.ndarray, sensitivity: float) -> float:
    """The lowest confidence from which predictions can be accepted.

    From it on every class that has accepted rows reaches the sensitivity among them: of those whose truth it is, that
    share is predicted so. ``ACCEPT_NONE`` where no confidence does.

    Args:
        probabilities: float [N, C] of held-out rows.
        targets: int64 [N], their classes.
        sensitivity: asked for, 0..1.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    order = np.argsort(-confidence, kind="stable")
    member = np.eye(probabilities.shape[1], dtype=bool)[targets[order]]
    accepted, found = member.cumsum(0), (member & right[order, None]).cumsum(0)
    # Class by class, over the first one, two, three ... most confident rows.
    enough = (found >= sensitivity * accepted - 1e-9).all(1)
    ends = np.append(np.diff(confidence[order]) < 0, True)  # rows of one confidence are accepted together
    good = np.flatnonzero(enough & ends)
    return float(confidence[order][good[-1]]) if len(good) else ACCEPT_NONE


def calibrate(logits: np.ndarray, targets: np.ndarray, sensitivity: float) -> Calibration:
    """Both, from held-out logits float [N, C] and their classes int64 [N]."""
    temperature = fit_temperature(logits, targets)
    probabilities = softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return Calibration(temperature, fit_threshold(probabilities, targets, sensitivity))
