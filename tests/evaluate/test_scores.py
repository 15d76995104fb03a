"""Intervals of scores against independent formulas: the paired bootstrap on 0 and 1, the delta method, Welch and Satterthwaite."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from keepsight.core import Score
from keepsight.evaluate.classification import accuracy
from keepsight.evaluate.intervals import interval, paired_difference
from keepsight.evaluate.scores import score_difference, score_interval

RNG = np.random.default_rng(5)
N = 400


def said(right: np.ndarray) -> np.ndarray:
    """Probabilities that are right where they should be; the truth is class 0."""
    return np.stack([right, 1 - right], axis=1).astype(float)


def test_an_accuracy_has_the_interval_of_an_accuracy() -> None:
    right = RNG.random(N) < 0.7
    expected = interval(accuracy, [said(right)], np.zeros(N, np.int64))
    found = score_interval(Score("accuracy", "x", right[None].astype(float)))
    assert (found.value, found.kind) == (expected.value, "bootstrap")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_difference_of_accuracies_is_the_paired_one() -> None:
    before = RNG.random(N) < 0.6
    after = np.where(RNG.random(N) < 0.15, ~before, before)
    truth = np.zeros(N, np.int64)
    expected = paired_difference(accuracy, (said(after), truth), (said(before), truth))
    found = score_difference(*(Score("accuracy", "x", x[None].astype(float)) for x in (after, before)))
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    alone = score_interval(Score("accuracy", "x", after[None].astype(float)))
    assert found.high - found.low < alone.high - alone.low  # what is hard for both cancels


def test_a_ratio_of_sums_over_clusters_has_the_delta_methods_width() -> None:
    units = RNG.integers(0, 90, N)
    hard = RNG.gamma(1.0, 0.15, 90)
    weights = RNG.integers(2, 12, N).astype(float)
    edits = RNG.binomial(weights.astype(int), np.minimum(hard[units], 1)).astype(float)
    found = score_interval(Score("cer", "words", edits[None], weights, units, better="lower"))
    ratio = edits.sum() / weights.sum()
    assert found.value == pytest.approx(ratio)
    # Var(R) = sum over clusters of (y_u - R x_u)^2 / (sum of x)^2, as in survey sampling (Cochran 1977, 3.11).
    residual = np.bincount(units, edits) - ratio * np.bincount(units, weights)
    error = np.sqrt((residual**2).sum()) / weights.sum()
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    # Without the clusters it would look more certain than it is.
    naive = score_interval(Score("cer", "words", edits[None], weights, better="lower"))
    assert naive.high - naive.low < 0.8 * (found.high - found.low)


def test_several_seeds_add_their_scatter() -> None:
    values = (RNG.random((4, N)) < np.array([0.5, 0.6, 0.65, 0.75])[:, None]).astype(float)
    found = score_interval(Score("accuracy", "x", values))
    figures = values.mean(axis=1)
    of_seeds = figures.var(ddof=1) / 4
    of_items = values.mean(axis=0).var() / N
    freedom = (of_seeds + of_items) ** 2 / (of_seeds**2 / 3 + of_items**2 / (N - 1))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(of_seeds + of_items)
    assert found.value == pytest.approx(figures.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)
    assert (found.kind, found.spread) == ("seeds+bootstrap", pytest.approx(figures.std(ddof=1)))


def test_seeds_are_paired() -> None:
    """Seeds that scatter alike before and after say nothing of the difference."""
    level = np.array([0.3, 0.5, 0.7, 0.9])[:, None]
    chance = RNG.random((4, N))
    before = Score("accuracy", "x", (chance < level - 0.05).astype(float))
    after = Score("accuracy", "x", (chance < level).astype(float))
    found = score_difference(after, before)
    assert found.kind == "paired seeds+bootstrap"
    assert 0 < found.low < found.value < found.high < 0.1
    mixed = Score("accuracy", "x", before.values[::-1].copy())
    unpaired = score_difference(after, mixed)
    assert unpaired.value == pytest.approx(found.value)
    assert unpaired.low < 0


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_is_the_same_bit_for_bit_differs_by_exactly_nothing(seeds: int) -> None:
    values = RNG.random((seeds, N))
    found = score_difference(Score("accuracy", "x", values), Score("accuracy", "x", values.copy()))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    other = values.copy()
    other[0, 0] = np.nextafter(other[0, 0], 2)
    assert score_difference(Score("accuracy", "x", other), Score("accuracy", "x", values)).high > 0


def test_bounds_are_the_figures_own() -> None:
    always = score_interval(Score("accuracy", "x", np.ones((1, 50))))
    assert (always.low, always.high) == (pytest.approx(0.025 ** (1 / 50)), 1.0)  # the exact binomial bound
    edits = np.tile([0.0, 30.0], 30)[None]
    rate = score_interval(Score("cer", "x", edits, np.full(60, 5.0), better="lower"))
    assert rate.value == pytest.approx(3)
    assert rate.high > 3.5


def test_a_unit_without_weight_changes_nothing() -> None:
    values, weights = RNG.random((1, N)), np.ones(N)
    more = np.concatenate([values, np.zeros((1, 1))], axis=1)
    found = score_interval(Score("x", "x", more, np.concatenate([weights, [0.0]])))
    assert found.value == pytest.approx(values.mean())


def test_other_items_are_no_pair() -> None:
    one = Score("accuracy", "x", np.ones((1, 4)))
    for other in (
        Score("accuracy", "y", np.ones((1, 4))),
        Score("accuracy", "x", np.ones((2, 4))),
        Score("accuracy", "x", np.ones((1, 4)), np.full(4, 2.0)),
        Score("accuracy", "x", np.ones((1, 4)), units=np.array([0, 0, 1, 1])),
    ):
        with pytest.raises(ValueError, match="accuracy on"):
            score_difference(one, other)
