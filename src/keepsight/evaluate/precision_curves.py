"""Average precision from matches of answers and objects, under any weighting of the images. Knows no boxes, masks or library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from keepsight.evaluate.classification import Floats

_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Curve:
    """The answers of one class at one IoU threshold, all images together, as far as average precision depends on them.

    Attributes:
        hits: [P] the image (0 to I - 1) of each answer that met an object, from the best score.
        misses: [M] the image of each answer that met nothing.
        before: [M] the hit (0 to P - 1) that each of them stands before; none is after the last one, where it costs nothing.
    """

    hits: NDArray[np.int64]
    misses: NDArray[np.int64]
    before: NDArray[np.int64]


def curves_of(states: Sequence[tuple[Any, ...]]) -> tuple[Curve, ...]:
    """One class's curve at each of ten thresholds.

    Args:
        states: Of each image what faster-coco-eval pickles of its matches: the answers' [T * D] and the objects' matches, scores
            [D], ignored objects, ignored answers [T * D], and more.
    """
    scores = [np.array(state[2], dtype=np.float64) for state in states]
    image_D = np.repeat(np.arange(len(states)), [len(each) for each in scores])
    order = np.argsort(-np.concatenate(scores), kind="stable")

    def joined(part: int) -> NDArray[np.bool_]:
        of_images = [np.array(state[part]).reshape(10, -1) for state in states if state[2]]
        return np.concatenate([np.zeros((10, 0)), *of_images], axis=1)[:, order] > 0

    met_TD, ignored_TD = joined(0), joined(4)
    return tuple(_curve(met_TD[t], ignored_TD[t], image_D[order]) for t in range(10))


def _curve(met_D: NDArray[np.bool_], ignored_D: NDArray[np.bool_], image_D: NDArray[np.int64]) -> Curve:
    hit_D = met_D & ~ignored_D
    before_D = np.cumsum(hit_D)
    miss_D = ~met_D & ~ignored_D & (before_D < hit_D.sum())
    return Curve(image_D[hit_D], image_D[miss_D], before_D[miss_D])


def average_precisions(
    curves: tuple[tuple[Curve, ...], ...], objects_KI: Floats, weights_DI: Floats, thresholds: slice
) -> Floats:
    """Average precision [D, K], mean over some thresholds, when images count as often as D weightings say.

    AP is the mean over the recalls r = 0, .01, ... 1 of the best precision at any recall from r upwards (0 where none is
    reached). That best is always at a hit, so that precision is needed at hits only.
    """
    found_KD = []
    for of_class, objects_I in zip(curves, objects_KI, strict=True):
        total_D = weights_DI @ objects_I
        values = [_interpolated(curve, weights_DI, total_D) for curve in of_class[thresholds]]
        found_KD.append(np.where(total_D > 0, np.mean(values, axis=0), np.nan))
    return np.stack(found_KD, axis=1)


def _interpolated(curve: Curve, weights_DI: Floats, total_D: Floats) -> Floats:
    """[D] of one curve."""
    if not len(curve.hits):
        return np.zeros(len(weights_DI))
    hits_DP = np.cumsum(weights_DI[:, curve.hits], axis=1)
    shape, ones = (len(curve.hits), weights_DI.shape[1]), np.ones(len(curve.misses))
    misses_PI = sparse.csr_array((ones, (curve.before, curve.misses)), shape=shape)
    misses_DP = np.cumsum((misses_PI @ weights_DI.T).T, axis=1)
    answers_DP = hits_DP + misses_DP
    precision_DP = np.divide(hits_DP, answers_DP, out=np.zeros_like(hits_DP), where=answers_DP > 0)
    best_DP = np.maximum.accumulate(precision_DP[:, ::-1], axis=1)[:, ::-1]
    recall_DP = hits_DP / np.maximum(total_D, 1e-12)[:, None]
    reached_DP = np.where(hits_DP > 0, np.searchsorted(_RECALLS, recall_DP, side="right"), 0)
    value_D: Floats = (best_DP * np.diff(reached_DP, axis=1, prepend=0)).sum(axis=1) / len(_RECALLS)
    return value_D
