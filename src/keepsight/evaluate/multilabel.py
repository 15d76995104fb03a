"""Mean average precision and AUROC of multi-label predictions, with intervals. Knows no model.

A class is scored by how it ranks images. Means are over the classes that occur among the images at hand; in a resample without an
image of a class, over the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from keepsight.evaluate.classification import Floats
from keepsight.evaluate.intervals import DRAWS, Interval, from_draws
from keepsight.evaluate.resampled import resamples

Targets = NDArray[np.int8] | NDArray[np.int64]

MAP, AUROC = "mean_average_precision", "macro_auroc"
"""The two figures of a model; beside them stands `class_metric` of every class."""

NUMBERS = 4_000_000
"""At most so many numbers are in memory in one array."""


def class_metric(name: str) -> str:
    """What records call the average precision of one class."""
    return f"ap({name})"


def average_precisions(scores_NK: Floats, targets_NK: Targets, weights_DN: Floats) -> Floats:
    """Average precision [D, K] of every class under D weightings of the images; NaN where a class has none.

    AP = sum_n (R_n - R_(n-1)) P_n over the thresholds n that scores set, from the highest, with precision P_n and recall R_n of
    the images at or above it (scikit-learn's `average_precision_score`); images of one score share a threshold.

    Args:
        scores_NK: Probabilities, or anything of the same order.
        targets_NK: 1 for the classes that an image has, else 0.
        weights_DN: How often each image counts.

    Example:
        >>> average_precisions(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]]), np.ones((1, 3))).round(3).tolist()
        [[0.833]]
    """
    return np.stack([_average_precision(*curve) for curve in _curves(scores_NK, targets_NK, weights_DN)], axis=1)


def aurocs(scores_NK: Floats, targets_NK: Targets, weights_DN: Floats) -> Floats:
    """Area under the ROC curve [D, K] of every class under D weightings; NaN where a class has all images or none.

    The probability that an image with the class scores above one without it; equal scores count one half (Mann and Whitney).

    Example:
        >>> aurocs(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]]), np.ones((1, 3))).tolist()
        [[0.5]]
    """
    return np.stack([_auroc(*curve) for curve in _curves(scores_NK, targets_NK, weights_DN)], axis=1)


def _curves(scores_NK: Floats, targets_NK: Targets, weights_DN: Floats) -> Iterator[tuple[Floats, Floats]]:
    """For each class how many images with and without it are at or above each threshold [D, T]."""
    for k in range(scores_NK.shape[1]):
        order = np.argsort(-scores_NK[:, k], kind="stable")
        score_N, has_N = scores_NK[order, k], targets_NK[order, k] == 1
        last_T = np.append(np.flatnonzero(np.diff(score_N)), len(score_N) - 1)  # the last image of each threshold
        weights = weights_DN[:, order]
        seen_DT = np.cumsum(weights, axis=1)[:, last_T]
        true_DT = np.cumsum(weights * has_N, axis=1)[:, last_T]
        yield true_DT, seen_DT - true_DT


def _average_precision(true_DT: Floats, false_DT: Floats) -> Floats:
    """AP [D] from the images with and without the class at or above each threshold."""
    seen_DT = true_DT + false_DT
    precision_DT = np.divide(true_DT, seen_DT, out=np.zeros_like(true_DT), where=seen_DT > 0)
    area_D: Floats = (np.diff(true_DT, axis=1, prepend=0.0) * precision_DT).sum(axis=1)
    return _ratio(area_D, true_DT[:, -1])


def _auroc(true_DT: Floats, false_DT: Floats) -> Floats:
    height_DT = true_DT - np.diff(true_DT, axis=1, prepend=0.0) / 2
    area_D: Floats = (np.diff(false_DT, axis=1, prepend=0.0) * height_DT).sum(axis=1)
    return _ratio(area_D, true_DT[:, -1] * false_DT[:, -1])


def _ratio(above_D: Floats, below_D: Floats) -> Floats:
    ratio_D: Floats = np.divide(above_D, below_D, out=np.full_like(above_D, np.nan), where=below_D > 0)
    return ratio_D


def mean_over_classes(values_DK: Floats) -> Floats:
    """Mean [D] over the classes that are not NaN; NaN where all are."""
    there_DK = ~np.isnan(values_DK)
    count_D = there_DK.sum(axis=1)
    total_D = np.where(there_DK, values_DK, 0.0).sum(axis=1)
    mean_D: Floats = np.divide(total_D, count_D, out=np.full(len(values_DK), np.nan), where=count_D > 0)
    return mean_D


def mean_average_precision(scores_NK: Floats, targets_NK: Targets) -> float:
    """Mean of `average_precisions` over the classes that occur; NaN where none does."""
    return float(mean_over_classes(average_precisions(scores_NK, targets_NK, np.ones((1, len(scores_NK)))))[0])


def map_draws(scores_NK: Floats, targets_NK: Targets) -> Floats:
    """Mean average precision on each of the bootstrap's resamples [draws], which are the same ones for all models."""
    n = len(scores_NK)
    parts = [average_precisions(scores_NK, targets_NK, w_DN) for w_DN in resamples(n, max(1, NUMBERS // n))]
    return mean_over_classes(np.concatenate(parts))


def multilabel_intervals(
    predictions: Sequence[Floats], targets_NK: Targets, classes: Sequence[str]
) -> dict[str, list[Interval]]:
    """For each figure the interval of every run alone, then the one over all runs: `MAP`, `AUROC`, `class_metric` of each class.

    Figures that are not defined, such as those of a class that no image has, are left out.

    Args:
        predictions: Probabilities [N, K] of each run, on the same N images.
        targets_NK: The truth.
        classes: K names.

    Example:
        >>> truth = np.array([[1, 0], [0, 1]] * 50)
        >>> found = multilabel_intervals([truth.astype(float), 1.0 - truth], truth, ("a", "b"))
        >>> [interval.value for interval in found["macro_auroc"]]
        [1.0, 0.0, 0.5]
    """
    n = len(targets_NK)
    weights = list(resamples(n, max(1, NUMBERS // n)))
    names = (MAP, AUROC, *(class_metric(name) for name in classes))
    values_SM = np.stack([_figures(p, targets_NK, [np.ones((1, n))])[0] for p in predictions])
    draws_SDM = np.stack([_figures(p, targets_NK, weights) for p in predictions])
    found = {}
    for m, name in enumerate(names):
        values_S, draws_SD = values_SM[:, m], draws_SDM[:, :, m]
        draws_SD = draws_SD[:, ~np.isnan(draws_SD).any(axis=0)]  # a resample without the class says nothing about it
        if np.isnan(values_S).any() or draws_SD.shape[1] < DRAWS // 2:
            continue
        alone = [from_draws(values_S[s : s + 1], draws_SD[s], n) for s in range(len(predictions))]
        found[name] = [*alone, from_draws(values_S, draws_SD.mean(axis=0), n)]
    return found


def _figures(scores_NK: Floats, targets_NK: Targets, weights: Sequence[Floats]) -> Floats:
    """Both means and every class's average precision [D, 2 + K]."""
    parts = []
    for w_DN in weights:
        both = [(_average_precision(*c), _auroc(*c)) for c in _curves(scores_NK, targets_NK, w_DN)]
        ap_DK, auroc_DK = (np.stack(columns, axis=1) for columns in zip(*both, strict=True))
        parts.append(np.column_stack([mean_over_classes(ap_DK), mean_over_classes(auroc_DK), ap_DK]))
    return np.concatenate(parts)
