"""Calibration of a model on held-out rows: the temperature of its logits and the threshold of acceptance."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

# A threshold above every confidence: no prediction is accepted.
ACCEPT_NONE = 1.01
_LOWEST, _HIGHEST = np.log(0.02), np.log(50.0)


@dataclass(frozen=True)
class Calibration:
    """The temperature of a model's probabilities, and when its predictions are accepted.

    Args:
        temperature: divisor of the logits, 0.02 to 50.
        accept_at: lowest confidence of an accepted prediction, 0 to 1, or ``ACCEPT_NONE``.
    """

    temperature: float
    accept_at: float


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature, 0.02 to 50, that maximises the likelihood of held-out rows (arXiv 1706.04599, section 4.2).

    Args:
        logits: float [N, C] of rows that the model was not fitted to.
        targets: int64 [N], their classes.

    Returns:
        The divisor of the logits.
    """

    def loss(logarithm: float) -> float:
        log_probabilities = log_softmax(np.asarray(logits, np.float64) / np.exp(logarithm), axis=1)
        return -float(log_probabilities[np.arange(len(targets)), targets].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(_LOWEST, _HIGHEST), method="bounded").x))


def fit_threshold(probabilities: np.ndarray, targets: np.ndarray, sensitivity: float) -> float:
    """The lowest confidence from which predictions can be accepted.

    Among the accepted rows of each class, the share that is predicted correctly has to reach the sensitivity. A class
    without accepted rows does not count.

    Args:
        probabilities: float [N, C] of held-out rows.
        targets: int64 [N], their classes.
        sensitivity: the sensitivity that each class has to reach, 0 to 1.

    Returns:
        The threshold, 0 to 1; ``ACCEPT_NONE`` where no confidence reaches the sensitivity.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    order = np.argsort(-confidence, kind="stable")
    of_class = np.eye(probabilities.shape[1], dtype=bool)[targets[order]]
    # For each class, among the first one, two, three ... most confident rows.
    accepted, hits = of_class.cumsum(0), (of_class & correct[order, None]).cumsum(0)
    reaches = (hits >= sensitivity * accepted - 1e-9).all(1)
    last_of_ties = np.append(np.diff(confidence[order]) < 0, True)  # rows of one confidence are accepted together
    candidates = np.flatnonzero(reaches & last_of_ties)
    return float(confidence[order][candidates[-1]]) if len(candidates) else ACCEPT_NONE


def calibrate(logits: np.ndarray, targets: np.ndarray, sensitivity: float) -> Calibration:
    """Fit the temperature, then the threshold on the calibrated probabilities.

    Args:
        logits: float [N, C] of rows that the model was not fitted to.
        targets: int64 [N], their classes.
        sensitivity: the sensitivity that each class has to reach among accepted rows, 0 to 1.

    Returns:
        Temperature and threshold.
    """
    temperature = fit_temperature(logits, targets)
    probabilities = softmax(np.asarray(logits, np.float64) / temperature, axis=1)
    return Calibration(temperature, fit_threshold(probabilities, targets, sensitivity))
