"""95 % intervals of a probe's scores, and of the difference of two backbones' scores on the same items. Knows no probe.

A score is a ratio of sums over items. Items are resampled by their units (all questions of an image together), the same
resamples for both backbones; seeds count as in `intervals.from_draws`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keepsight.core.probe import Score
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.intervals import Interval, from_draws
from keepsight.evaluate.resampled import NUMBERS, resamples


def score_interval(score: Score) -> Interval:
    """A score's mean over its seeds, with its interval.

    One seed: the percentile bootstrap over units. Several: seeds and units together (see `intervals.interval`).

    Example:
        >>> found = score_interval(Score("accuracy", "words", np.array([[1.0, 0.0] * 50])))
        >>> found.value, found.low < 0.45
        (0.5, True)
    """
    return from_draws(score.figures(), _draws(score), _count(score), _bounds(score))


def score_difference(after: Score, before: Score) -> Interval:
    """after - before, with its interval.

    Each seed of the one is paired with the same seed of the other, and each resample takes the same units for both, so that what
    is hard for both cancels. Where all values are the same bit for bit, the difference is exactly 0 with the interval [0, 0].

    Raises:
        ValueError: They are not of the same items and seeds.
    """
    if (after.metric, after.dataset, after.values.shape) != (before.metric, before.dataset, before.values.shape):
        raise ValueError(f"{after.metric} on {after.dataset} is compared with another score")
    if not (np.array_equal(after.weights, before.weights) and np.array_equal(after.units, before.units)):
        raise ValueError(f"{after.metric} on {after.dataset} is of other items before than after")
    seeds = len(after.values)
    kind = "paired bootstrap" if seeds == 1 else "paired seeds+bootstrap"
    if np.array_equal(after.values, before.values):
        return Interval(0.0, 0.0, 0.0, kind, 0.0 if seeds > 1 else None)
    (low, high), (low0, high0) = _bounds(after), _bounds(before)
    bounds = low - high0, high - low0
    found = from_draws(after.figures() - before.figures(), _draws(after) - _draws(before), _count(after), bounds)
    return replace(found, kind=kind)


def _weights(score: Score) -> Floats:
    return score.weights if len(score.weights) else np.ones(score.values.shape[1])


def _units(score: Score) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """How many units there are, and the unit of each item."""
    n = score.values.shape[1]
    if not len(score.units):
        return n, np.arange(n, dtype=np.int64)
    distinct, of_item = np.unique(score.units, return_inverse=True)
    return len(distinct), of_item.reshape(-1).astype(np.int64)


def _count(score: Score) -> int:
    return _units(score)[0]


def _draws(score: Score) -> Floats:
    """[draws]: the mean over seeds of sum(values) / sum(weights) on each resample of the units."""
    count, of_item = _units(score)
    values_U = np.bincount(of_item, score.values.mean(axis=0), count)
    weights_U = np.bincount(of_item, _weights(score), count)
    parts = [(w_DU @ values_U, w_DU @ weights_U) for w_DU in resamples(count, max(1, NUMBERS // count))]
    above, below = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    # A resample of units that weigh nothing has no figure: it says nothing, and is left at the figure itself.
    figure = float(score.figures().mean())
    ratio: Floats = np.divide(above, below, out=np.full_like(above, figure), where=below > 0)
    return ratio


def _bounds(score: Score) -> tuple[float, float]:
    """Between which figures of its kind lie: a share is at most 1, an error rate of edits may be more."""
    low = 0.0 if bool((score.values >= 0).all()) else -np.inf
    high = 1.0 if bool((score.values <= _weights(score)).all()) else np.inf
    return low, high
