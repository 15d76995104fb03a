"""Differences over seeds and the share of a loss that was kept."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.evaluate.intervals import DRAWS, from_draws
from keepsight.evaluate.retention import of_values, over_seeds, share_kept


def draws(values: list[float], scatter: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed).normal(0, scatter, DRAWS)
    return np.array(values), np.array(values)[:, None] + noise


def test_over_seeds_is_the_interval_of_accuracies_where_nothing_is_cut() -> None:
    values, resampled = draws([0.5, 0.55, 0.6], 0.01)
    ours, theirs = over_seeds(values, resampled, 400), from_draws(values, resampled.mean(axis=0), 400)
    assert (ours.value, ours.low, ours.high, ours.spread) == pytest.approx(
        (theirs.value, theirs.low, theirs.high, theirs.spread)
    )
    negative = over_seeds(values - 1, resampled - 1, 400)
    assert (negative.low, negative.high) == pytest.approx((ours.low - 1, ours.high - 1))


def test_more_scatter_between_seeds_is_a_wider_interval() -> None:
    narrow, wide = (over_seeds(*draws(values, 0.01), 400) for values in ([-0.04, -0.041], [-0.02, -0.061]))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_figures_without_resamples_have_a_t_interval_over_seeds() -> None:
    found = of_values(np.array([1.0, 3.0]))
    assert (found.value, found.high) == pytest.approx((2.0, 2.0 + 12.706205 * 2**0.5 / 2**0.5), rel=1e-5)
    assert of_values(np.array([1.0])).kind == "none"


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_share_kept_covers_what_it_is_the_share_of(seeds: int) -> None:
    plain, other = draws([-0.04] * seeds, 0.005, 1), draws([-0.01] * seeds, 0.005, 2)
    found = share_kept(plain, other)
    assert found.value == pytest.approx(0.75)
    assert 0.3 < found.low < 0.75 < found.high < 1.1
    same = share_kept(plain, plain)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0))
    gained = share_kept(plain, draws([0.02] * seeds, 0.0))
    assert gained.value == pytest.approx(1.5)
    with pytest.raises(ValueError, match="lost nothing"):
        share_kept(draws([0.01] * seeds, 0.005), other)
