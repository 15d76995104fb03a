"""Intervals: they cover what they say, and behave at the ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from keepsight.evaluate import intervals
from keepsight.evaluate.classification import METRICS
from keepsight.evaluate.intervals import interval

error = METRICS["error"]


def classifier(rng: np.random.Generator, labels: np.ndarray, rate: float, hard: np.ndarray | None = None) -> np.ndarray:
    """Probabilities that are wrong at a rate, on images whose hardness several classifiers may share."""
    u = rng.random(len(labels)) if hard is None else hard
    wrong = u < rate
    return np.eye(2)[np.where(wrong, 1 - labels, labels)]


def test_one_seed_equals_the_binomial_bootstrap() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    found = interval(error, [classifier(rng, y, 0.2)], y)
    low, high = stats.binom.ppf([0.025, 0.975], 400, found.value) / 400
    assert found.kind == "bootstrap"
    assert found.low == pytest.approx(low, abs=0.012)
    assert found.high == pytest.approx(high, abs=0.012)


def test_coverage_over_seeds_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # True error 0.2 over new images AND new seeds; three seeds share the test images (and part of their hardness).
    monkeypatch.setattr(intervals, "DRAWS", 100)
    rng, covered, runs = np.random.default_rng(1), 0, 200
    for _ in range(runs):
        y = rng.integers(0, 2, 200)
        hard = rng.random(200)
        rates = np.clip(rng.normal(0.2, 0.03, 3), 0, 1)
        found = interval(error, [classifier(rng, y, rate, hard) for rate in rates], y)
        covered += found.low <= 0.2 <= found.high
    assert 0.90 <= covered / runs <= 1.0


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 300)
    hard = rng.random(300)
    same = interval(error, [classifier(rng, y, 0.2, hard)] * 3, y)
    apart = interval(error, [classifier(rng, y, rate, hard) for rate in (0.1, 0.2, 0.3)], y)
    assert apart.high - apart.low > 2 * (same.high - same.low)
    assert same.spread == 0.0


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_error_on_few_images_is_not_certainty(seeds: int) -> None:
    y = np.arange(30) % 2
    found = interval(error, [np.eye(2)[y]] * seeds, y)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 30))


def test_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval(error, [np.zeros((0, 2))], np.zeros(0, np.int64))
