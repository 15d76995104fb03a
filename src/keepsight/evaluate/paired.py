"""Differences between two ways to fit, on the same test images: paired intervals and McNemar's exact test. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from keepsight.evaluate.classification import Floats
from keepsight.evaluate.intervals import Interval, from_draws
from keepsight.evaluate.multilabel import Targets, map_draws, mean_average_precision
from keepsight.evaluate.resampled import NUMBERS, resamples

Wrong = NDArray[np.bool_]


def error_change(first: Sequence[Wrong], second: Sequence[Wrong]) -> Interval:
    """Error of the first minus error of the second, with its 95 % interval.

    Each resample takes the same images for both, and each seed of the one is paired with the same seed of the other, so that what
    is hard for both cancels (see `intervals.from_draws` for how seeds and images are put together).

    Args:
        first, second: For each seed, whether each of the N images was answered wrongly; as many seeds for both.

    Raises:
        ValueError: Another number of seeds or images, or none.

    Example:
        >>> right, wrong = np.zeros(100, bool), np.ones(100, bool)
        >>> found = error_change([wrong], [right])
        >>> found.value, found.low > 0.9
        (1.0, True)
    """
    return all_error_changes([first, second])[0, 1]


def all_error_changes(wrong: Sequence[Sequence[Wrong]]) -> dict[tuple[int, int], Interval]:
    """`error_change` of each pair (i, j), i < j, of what is given as there; all with the same images and seeds."""
    if len({np.shape(one) for one in wrong}) != 1:
        raise ValueError("paired differences need the same images and seeds for all")
    known_RSN = np.array(wrong, dtype=np.float64)
    if known_RSN.ndim != 3 or known_RSN.size == 0:
        raise ValueError("paired differences need at least one image and one seed")
    n, errors_RS = known_RSN.shape[2], known_RSN.mean(axis=2)
    means_NR = known_RSN.mean(axis=1).T
    draws_DR = np.concatenate([w_DN @ means_NR / n for w_DN in resamples(n, max(1, NUMBERS // n))])
    return {
        (i, j): _named(from_draws(errors_RS[i] - errors_RS[j], draws_DR[:, i] - draws_DR[:, j], n, (-1.0, 1.0)))
        for i in range(len(wrong))
        for j in range(i + 1, len(wrong))
    }


def map_change(first: Sequence[Floats], second: Sequence[Floats], targets_NK: Targets) -> Interval:
    """Mean average precision of the first minus that of the second, likewise; probabilities [N, K] of each seed."""
    if len(first) != len(second) or not first:
        raise ValueError("a paired difference needs the same seeds for both, and at least one")
    pairs = list(zip(first, second, strict=True))
    values = [mean_average_precision(a, targets_NK) - mean_average_precision(b, targets_NK) for a, b in pairs]
    draws = np.mean([map_draws(a, targets_NK) - map_draws(b, targets_NK) for a, b in pairs], axis=0)
    return _named(from_draws(np.array(values), draws[~np.isnan(draws)], len(targets_NK), (-1.0, 1.0)))


def _named(found: Interval) -> Interval:
    return replace(found, kind=f"paired {found.kind}")


def mcnemar(first: Wrong, second: Wrong) -> float:
    """Two-sided p of McNemar's exact test: that of the images on which only one is right, each is so equally often.

    McNemar 1947, Psychometrika 12, 153; exact, by the binomial distribution.

    Example:
        >>> only_first_wrong = np.array([True] * 5 + [False] * 5)
        >>> mcnemar(only_first_wrong, np.zeros(10, bool))
        0.0625
    """
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    if one + other == 0:
        return 1.0
    return float(stats.binomtest(one, one + other, 0.5).pvalue)
