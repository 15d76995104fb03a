"""Accuracy, balanced accuracy, macro-F1 and calibration error, on weighted samples so that a bootstrap is one call a draw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Callable[[Floats, NDArray[np.int64], Floats], float]


def confusion(probabilities_NK: Floats, labels_N: NDArray[np.int64], weights_N: Floats) -> Floats:
    """Weighted confusion matrix [K, K]: rows are the truth, columns the prediction."""
    k = probabilities_NK.shape[1]
    cells = labels_N * k + probabilities_NK.argmax(axis=1)
    return np.bincount(cells, weights=weights_N, minlength=k * k).reshape(k, k).astype(np.float64)


def accuracy(probabilities_NK: Floats, labels_N: NDArray[np.int64], weights_N: Floats) -> float:
    """Share of correct predictions."""
    correct = probabilities_NK.argmax(axis=1) == labels_N
    return float((correct * weights_N).sum() / weights_N.sum())


def error(probabilities_NK: Floats, labels_N: NDArray[np.int64], weights_N: Floats) -> float:
    """1 - accuracy."""
    return 1.0 - accuracy(probabilities_NK, labels_N, weights_N)


def balanced_accuracy(probabilities_NK: Floats, labels_N: NDArray[np.int64], weights_N: Floats) -> float:
    """Mean recall over the classes that occur."""
    matrix = confusion(probabilities_NK, labels_N, weights_N)
    support = matrix.sum(axis=1)
    there = support > 0
    return float((matrix.diagonal()[there] / support[there]).mean())


def macro_f1(probabilities_NK: Floats, labels_N: NDArray[np.int64], weights_N: Floats) -> float:
    """Mean over the classes that occur (as truth or as prediction) of 2 TP / (2 TP + FP + FN)."""
    matrix = confusion(probabilities_NK, labels_N, weights_N)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    there = total > 0
    return float((2 * matrix.diagonal()[there] / total[there]).mean())


def ece(probabilities_NK: Floats, labels_N: NDArray[np.int64], weights_N: Floats, bins: int = 15) -> float:
    """Expected calibration error: sum over bins b of |B_b| / N * |accuracy(B_b) - confidence(B_b)|.

    Equal-width bins over the top probability (Guo et al. 2017, arXiv 1706.04599, eq. 3).
    """
    confidence = probabilities_NK.max(axis=1)
    correct = probabilities_NK.argmax(axis=1) == labels_N
    bin_N, _ = confidence_bins(probabilities_NK, bins)
    gap = np.bincount(bin_N, weights=weights_N * (correct - confidence), minlength=bins)
    return float(np.abs(gap).sum() / weights_N.sum())


def confidence_bins(probabilities_NK: Floats, bins: int = 15) -> tuple[NDArray[np.int64], int]:
    """The bin [N] of each top probability, and how many bins there are: equal widths, each with its upper end."""
    top_N = probabilities_NK.max(axis=1)
    return np.clip(np.ceil(top_N * bins).astype(np.int64) - 1, 0, bins - 1), bins


METRICS: dict[str, Metric] = {
    "error": error,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "ece": ece,
}
"""What is reported of a classifier, in this order."""
