"""Temperature, reliability and calibration error against formulas written down independently, on planted probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from keepsight.evaluate.calibration import ece_change, reliability, wilson
from keepsight.evaluate.classification import ece
from keepsight.evaluate.temperature import temperature, tempered


def drawn(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that would be exact after division of their logs by `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 4))
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(4, p=row) for row in exact])
    sharp = np.exp(sharpness * logits)
    return sharp / sharp.sum(axis=1, keepdims=True), labels


def test_the_planted_temperature_is_found() -> None:
    for sharpness in (0.5, 1.0, 3.0):
        probabilities, labels = drawn(4000, sharpness)
        assert temperature(probabilities, labels) == pytest.approx(sharpness, rel=0.1)


def test_it_minimises_the_cross_entropy() -> None:
    probabilities, labels = drawn(300, 2.0)

    def loss(t: float) -> float:
        return float(-np.log(tempered(probabilities, t)[np.arange(300), labels]).mean())

    found = temperature(probabilities, labels)
    assert loss(found) <= min(loss(t) for t in np.geomspace(0.05, 20, 400)) + 1e-6
    np.testing.assert_allclose(tempered(probabilities, 1.0), probabilities, atol=1e-12)
    np.testing.assert_array_equal(tempered(probabilities, found).argmax(axis=1), probabilities.argmax(axis=1))


def test_zeros_and_faultless_predictions_end_within_the_range() -> None:
    labels = np.array([0, 1, 1])
    assert temperature(np.eye(2)[labels], labels) >= 0.05
    assert temperature(np.eye(2)[1 - labels], labels) <= 20.0


def test_wilson_is_the_score_interval() -> None:
    for hits, n in ((3, 10), (99, 100), (1, 3)):
        low, high = wilson(hits, n)
        for end in (low, high):  # the ends are where the score test is on its limit
            assert abs(hits / n - end) / np.sqrt(end * (1 - end) / n) == pytest.approx(stats.norm.ppf(0.975))


def test_bins_add_up_to_accuracy_and_confidence() -> None:
    probabilities, labels = drawn(500, 2.0)
    bins = reliability(probabilities, labels)
    assert sum(b.n for b in bins) == 500
    assert sum(b.n * b.accuracy for b in bins) == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    assert sum(b.n * b.confidence for b in bins) == pytest.approx(probabilities.max(axis=1).sum())
    assert all(b.low <= b.accuracy <= b.high for b in bins)


def test_a_fitted_temperature_surely_lowers_the_error_and_its_interval_is_paired() -> None:
    fitted = temperature(*drawn(1000, 4.0, seed=1))
    probabilities, labels = drawn(1000, 4.0, seed=2)
    found = ece_change(probabilities, labels, fitted)
    assert found.before.value == pytest.approx(ece(probabilities, labels, np.ones(1000)))
    assert found.after.value == pytest.approx(ece(tempered(probabilities, fitted), labels, np.ones(1000)))
    assert found.change.value == pytest.approx(found.after.value - found.before.value)
    assert found.change.high < 0
    alone = ece_change(probabilities, labels, 1.0).change
    assert (alone.value, alone.low, alone.high) == (0.0, 0.0, 0.0)
