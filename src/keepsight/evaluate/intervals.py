"""95 % intervals: over test images by bootstrap, and over seeds and test images together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from keepsight.evaluate.classification import Floats, Metric

DRAWS = 1000
"""Bootstrap draws."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % interval; `kind` says what the interval covers."""

    value: float
    low: float
    high: float
    kind: str
    spread: float | None = None


def _bootstrap(
    metric: Metric, predictions: list[Floats], labels_N: NDArray[np.int64], rng: np.random.Generator
) -> Floats:
    """[draws]: the metric's mean over the predictions, on the same resampled images for all of them."""
    n = len(labels_N)
    values = np.empty(DRAWS)
    for i in range(DRAWS):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        values[i] = np.mean([metric(p, labels_N, weights) for p in predictions])
    return values


def interval(metric: Metric, predictions: list[Floats], labels_N: NDArray[np.int64], seed: int = 0) -> Interval:
    """Mean of a metric over runs that differ by their seed and were tested on the same N images.

    One run: the percentile bootstrap over images. Several (S): the seeds' scatter and the images' scatter are independent, so
    the squared standard error is s^2 / S + v, with s the standard deviation over seeds and v the bootstrap variance of the mean
    over seeds; the interval is value +- t SE, with Welch's and Satterthwaite's degrees of freedom (few seeds, wide interval),
    cut at 0 and 1.

    Args:
        metric: One of `classification.METRICS`.
        predictions: Probabilities [N, K] of each run.
        labels_N: The truth.
        seed: Seed of the bootstrap.
    """
    n = len(labels_N)
    if n == 0 or not predictions:
        raise ValueError("an interval needs at least one run and one image")
    ones = np.ones(n)
    values = np.array([metric(p, labels_N, ones) for p in predictions])
    return from_draws(values, _bootstrap(metric, predictions, labels_N, np.random.default_rng(seed)), n)


def from_draws(values: Floats, draws: Floats, n: int, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """The interval of `interval` from a metric's values [S] of S runs and its mean over them on resamples [D] of n images.

    It is cut at the bounds, between which the metric lies.
    """
    least_of_all, most_of_all = bounds
    seeds = len(values)
    value, of_images = float(values.mean()), float(draws.var(ddof=1))
    # Where no resample differs (no error at all), the exact binomial bound stands in for the bootstrap's empty interval.
    least = 1 - 0.025 ** (1 / n) if of_images < 1e-18 else 0.0
    if seeds == 1:
        low, high = np.quantile(draws, [0.025, 0.975])
        return Interval(
            value, max(float(low) - least, least_of_all), min(float(high) + least, most_of_all), "bootstrap"
        )
    of_seeds, spread = float(values.var(ddof=1)) / seeds, float(values.std(ddof=1))
    squared = of_seeds + of_images
    half = least
    if squared > 0.0:
        freedom = squared**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / max(n - 1, 1))
        half += float(stats.t.ppf(0.975, freedom) * np.sqrt(squared))
    return Interval(value, max(value - half, least_of_all), min(value + half, most_of_all), "seeds+bootstrap", spread)


Measured = tuple[Floats, NDArray[np.int64]]
"""Probabilities [N, K] of one model and the truth [N] as indices into its own classes."""


def paired_difference(metric: Metric, first: Measured, second: Measured, seed: int = 0) -> Interval:
    """metric(first) - metric(second) on the same N images, with the percentile bootstrap over images.

    Each draw takes the same resampled images for both, so that what is hard for both cancels: the interval is that of the
    difference, and is narrower than the two single intervals suggest.

    Args:
        metric: One of `classification.METRICS`.
        first, second: What the two models say of the same images, in the same order; their classes may differ.
        seed: Seed of the bootstrap.

    Example:
        >>> from keepsight.evaluate.classification import accuracy
        >>> truth = np.array([0, 1] * 50)
        >>> right, wrong = np.eye(2)[truth], np.eye(2)[1 - truth]
        >>> found = paired_difference(accuracy, (right, truth), (wrong, truth))
        >>> found.value, found.low > 0
        (1.0, True)
    """
    n = len(first[1])
    if n == 0 or len(second[1]) != n:
        raise ValueError("a paired difference needs the same images for both, and at least one")
    rng, ones = np.random.default_rng(seed), np.ones(n)
    draws = np.empty(DRAWS)
    for i in range(DRAWS):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        draws[i] = metric(*first, weights) - metric(*second, weights)
    # As for one model: where no resample differs, the exact binomial bound stands in for an empty interval.
    least = 1 - 0.025 ** (1 / n) if draws.var(ddof=1) < 1e-18 else 0.0
    low, high = np.quantile(draws, [0.025, 0.975])
    value = metric(*first, ones) - metric(*second, ones)
    return Interval(value, max(float(low) - least, -1.0), min(float(high) + least, 1.0), "paired bootstrap")
