"""The intervals of all metrics at once, on the same resampled images: what `intervals.interval` says, many times faster.

A resample's metrics follow from a few weighted sums over images (hits, truths and predictions of each class; gaps of each bin of
confidence), so that a thousand resamples are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from keepsight.evaluate.classification import METRICS, Floats, confidence_bins
from keepsight.evaluate.intervals import DRAWS, Interval, from_draws

NUMBERS = 20_000_000
"""At most so many numbers are in memory in one array."""


def all_intervals(predictions: Sequence[Floats], labels_N: NDArray[np.int64]) -> dict[str, list[Interval]]:
    """For each metric of `METRICS` the interval of every run alone, then the one over all runs.

    Args:
        predictions: Probabilities [N, K] of each run, on the same N images.
        labels_N: The truth.

    Example:
        >>> truth = np.array([0, 1] * 50)
        >>> found = all_intervals([np.eye(2)[truth], np.eye(2)[1 - truth]], truth)
        >>> [interval.value for interval in found["error"]]
        [0.0, 1.0, 0.5]
    """
    n, ones = len(labels_N), np.ones(len(labels_N))
    draws = [_draws(p, labels_N) for p in predictions]
    found = {}
    for name, metric in METRICS.items():
        values = np.array([metric(p, labels_N, ones) for p in predictions])
        alone = [from_draws(values[i : i + 1], draws[i][name], n) for i in range(len(predictions))]
        found[name] = [*alone, from_draws(values, np.mean([d[name] for d in draws], axis=0), n)]
    return found


def resamples(n: int, most: int) -> Iterator[Floats]:
    """How often each of n images is in a resample, [draws, n], the draws of `intervals.interval` in some portions."""
    rng = np.random.default_rng(0)
    for start in range(0, DRAWS, most):
        size = min(most, DRAWS - start)
        yield np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)]).astype(np.float64)


def _draws(probabilities_NK: Floats, labels_N: NDArray[np.int64]) -> dict[str, Floats]:
    """Each metric on each resample, [draws]."""
    n, k = probabilities_NK.shape
    predicted_N = probabilities_NK.argmax(axis=1)
    hit_N = predicted_N == labels_N
    bin_N, bins = confidence_bins(probabilities_NK)
    gap_N = hit_N - probabilities_NK.max(axis=1)
    columns = np.concatenate([labels_N, k + labels_N, 2 * k + predicted_N, 3 * k + bin_N])
    values = np.concatenate([hit_N.astype(np.float64), np.ones(2 * n), gap_N])
    sums = sparse.csr_array((values, (np.tile(np.arange(n), 4), columns)), shape=(n, 3 * k + bins))
    parts = [_metrics(w_DN @ sums, n, k) for w_DN in resamples(n, max(1, NUMBERS // max(n, 3 * k + bins)))]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _metrics(sums: Floats, n: int, k: int) -> dict[str, Floats]:
    hits_DK, truths_DK, said_DK, gaps_DB = np.split(sums, [k, 2 * k, 3 * k], axis=1)
    accuracy = hits_DK.sum(axis=1) / n
    return {
        "error": 1.0 - accuracy,
        "accuracy": accuracy,
        "balanced_accuracy": _mean_ratio(hits_DK, truths_DK),
        "macro_f1": _mean_ratio(2 * hits_DK, truths_DK + said_DK),
        "ece": np.abs(gaps_DB).sum(axis=1) / n,
    }


def _mean_ratio(above_DK: Floats, below_DK: Floats) -> Floats:
    """Mean over the classes that occur of above / below."""
    there_DK = below_DK > 0
    ratio_DK = np.divide(above_DK, below_DK, out=np.zeros_like(above_DK), where=there_DK)
    mean_D: Floats = ratio_DK.sum(axis=1) / there_DK.sum(axis=1)
    return mean_D
