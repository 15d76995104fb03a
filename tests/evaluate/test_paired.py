"""Paired differences against `paired_difference`, and McNemar's test against its binomial sum."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from keepsight.evaluate.classification import error
from keepsight.evaluate.intervals import paired_difference
from keepsight.evaluate.paired import all_error_changes, error_change, map_change, mcnemar

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 3, 200)


def answers(share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(200) < share, TRUTH, (TRUTH + 1) % 3)
    return np.eye(3)[said]


def wrong(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.argmax(axis=1) != TRUTH


def test_one_seed_is_the_paired_bootstrap() -> None:
    first, second = answers(0.7, 1), answers(0.9, 2)
    found = error_change([wrong(first)], [wrong(second)])
    known = paired_difference(error, (first, TRUTH), (second, TRUTH))
    assert found.value == pytest.approx(known.value)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.01)
    assert found.low > 0


def test_seeds_that_scatter_widen_the_interval() -> None:
    second = [wrong(answers(0.9, 10 + s)) for s in range(3)]
    alike = error_change([wrong(answers(0.7, s)) for s in range(3)], second)
    apart = error_change([wrong(answers(share, 1)) for share in (0.5, 0.7, 0.9)], second)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)
    assert alike.kind == "paired seeds+bootstrap"


def test_all_pairs_are_the_pairs() -> None:
    three = [[wrong(answers(share, seed)) for seed in range(2)] for share in (0.6, 0.7, 0.9)]
    found = all_error_changes(three)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    assert found[0, 2] == error_change(three[0], three[2])


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        error_change([np.zeros(5, bool)], [np.zeros(6, bool)])


def test_map_changes_of_the_same_predictions_are_zero() -> None:
    targets = np.eye(3, dtype=np.int64)[TRUTH]
    scores = np.clip(targets + RNG.normal(0, 0.6, targets.shape), 0, 1)
    worse = np.clip(targets + RNG.normal(0, 3.0, targets.shape), -9, 9)
    assert map_change([scores], [scores], targets).value == 0
    assert map_change([scores], [worse], targets).low > 0


def test_mcnemar_is_the_binomial_sum() -> None:
    first, second = wrong(answers(0.7, 1)), wrong(answers(0.8, 2))
    a, b = int((first & ~second).sum()), int((~first & second).sum())
    tail = sum(comb(a + b, i) for i in range(min(a, b) + 1)) / 2 ** (a + b)
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(first, first) == 1.0
