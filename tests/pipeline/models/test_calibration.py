import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from medfocus.pipeline.models.calibration import ACCEPT_NONE, calibrate, fit_temperature, fit_threshold


def sampled(seed: int, rows: int = 3000, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn with the probabilities that the logits stand for."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (rows, classes))
    probabilities = softmax(logits, axis=1)
    return logits, (probabilities.cumsum(1) < random.uniform(size=(rows, 1))).sum(1).clip(0, classes - 1)


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_a_temperature_undoes_a_scale(scale: float) -> None:
    logits, targets = sampled(0)
    temperature = fit_temperature(logits * scale, targets)
    assert temperature == pytest.approx(scale, rel=0.1)
    grid = np.geomspace(0.02, 50, 4000)
    losses = [-log_softmax(logits * scale / t, axis=1)[np.arange(len(targets)), targets].mean() for t in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


def test_temperatures_stay_within_their_bounds() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]] * 5
    assert 0.02 <= fit_temperature(logits, np.array([0, 1, 2, 0])) < 0.5
    assert 40 < fit_temperature(logits, np.array([1, 2, 0, 1])) <= 50


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 4), st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]))
def test_the_threshold_is_the_lowest_that_reaches_the_sensitivity(
    seed: int, rows: int, classes: int, sensitivity: float
) -> None:
    random = np.random.default_rng(seed)
    probabilities = softmax(random.normal(0, 2, (rows, classes)).round(1), axis=1)  # rounded: some rows tie
    targets = random.integers(classes, size=rows)
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)

    def reaches(threshold: float) -> bool:
        accepted = confidence >= threshold
        hits = [predicted[accepted & (targets == name)] == name for name in range(classes)]
        return all(of_class.mean() >= sensitivity - 1e-9 for of_class in hits if len(of_class))

    lowest = min((value for value in confidence if reaches(value)), default=ACCEPT_NONE)
    assert fit_threshold(probabilities, targets, sensitivity) == lowest


def test_calibrate_fits_temperature_and_threshold() -> None:
    logits, targets = sampled(1)
    fitted = calibrate(logits * 3, targets, 0.9)
    probabilities = softmax(logits * 3 / fitted.temperature, axis=1)
    accepted = probabilities.max(1) >= fitted.accept_at
    assert 0.02 < accepted.mean() < 0.9
    for name in range(4):
        assert (probabilities.argmax(1) == name)[accepted & (targets == name)].mean() >= 0.9
    assert calibrate(logits, (targets + 1) % 4, 1.0).accept_at == ACCEPT_NONE
