"""How well confidence tells how often a classifier is right: bins of reliability, and what temperature scaling changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keepsight.evaluate.classification import Floats, confidence_bins, ece
from keepsight.evaluate.intervals import Interval, from_draws
from keepsight.evaluate.resampled import NUMBERS, resamples
from keepsight.evaluate.temperature import tempered

BINS = 10
"""Of a reliability diagram; the calibration error itself is over 15 (see `classification.ece`)."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions of like confidence: mean confidence, share that is right with its 95 % interval, how many."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    Example:
        >>> low, high = wilson(0, 10)
        >>> low, round(high, 3)
        (0.0, 0.278)
    """
    z = 1.959963984540054
    share, below = hits / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / below
    half = z / below * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def reliability(probabilities_NK: Floats, labels_N: NDArray[np.int64], bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Bins of equal width over the top probability, from the least sure; those without a prediction are left out.

    Example:
        >>> found = reliability(np.array([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6]]), np.array([0, 1, 1]))
        >>> [(bin.n, bin.accuracy) for bin in found]
        [(1, 1.0), (2, 0.5)]
    """
    bin_N, _ = confidence_bins(probabilities_NK, bins)
    hit_N, top_N = probabilities_NK.argmax(axis=1) == labels_N, probabilities_NK.max(axis=1)
    made = []
    for number in np.unique(bin_N):
        here = bin_N == number
        n, hits = int(here.sum()), int(hit_N[here].sum())
        low, high = wilson(hits, n)
        made.append(ReliabilityBin(float(top_N[here].mean()), hits / n, low, high, n))
    return tuple(made)


@dataclass(frozen=True, slots=True)
class EceChange:
    """Expected calibration error before and after temperature scaling, and after - before on the same resamples."""

    before: Interval
    after: Interval
    change: Interval


def ece_change(probabilities_NK: Floats, labels_N: NDArray[np.int64], temperature: float) -> EceChange:
    """The calibration error (Guo et al. 2017, eq. 3, 15 bins) before and after division by a temperature.

    Args:
        probabilities_NK: Of the test images.
        labels_N: The truth.
        temperature: Fitted on other images.
    """
    n, ones = len(labels_N), np.ones(len(labels_N))
    both = probabilities_NK, tempered(probabilities_NK, temperature)
    values = [ece(p, labels_N, ones) for p in both]
    gaps = [_gaps(p, labels_N) for p in both]
    parts = [[np.abs(w_DN @ gap_NB).sum(axis=1) / n for gap_NB in gaps] for w_DN in resamples(n, max(1, NUMBERS // n))]
    before, after = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    difference = from_draws(np.array([values[1] - values[0]]), after - before, n, (-1.0, 1.0))
    if temperature == 1.0:
        difference = Interval(0.0, 0.0, 0.0, "paired bootstrap")
    return EceChange(
        from_draws(np.array(values[:1]), before, n),
        from_draws(np.array(values[1:]), after, n),
        Interval(difference.value, difference.low, difference.high, "paired bootstrap"),
    )


def _gaps(probabilities_NK: Floats, labels_N: NDArray[np.int64]) -> Floats:
    """Right or wrong minus confidence, in the column of the prediction's bin [N, B]."""
    bin_N, bins = confidence_bins(probabilities_NK)
    gap_NB = np.zeros((len(labels_N), bins))
    gap_NB[np.arange(len(labels_N)), bin_N] = (probabilities_NK.argmax(axis=1) == labels_N) - probabilities_NK.max(
        axis=1
    )
    return gap_NB
