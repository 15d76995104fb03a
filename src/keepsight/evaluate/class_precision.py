"""Average precision of each class with its interval, and precision-recall curves, at an IoU of .5. Knows no boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keepsight.evaluate.classification import Floats
from keepsight.evaluate.coco import APs
from keepsight.evaluate.intervals import Interval, from_draws
from keepsight.evaluate.precision_curves import Curve, average_precisions
from keepsight.evaluate.resampled import resamples

AT_HALF = slice(0, 1)
"""Of the ten IoU thresholds the first, .5."""


@dataclass(frozen=True, slots=True)
class ClassPrecision:
    """One class at an IoU of .5.

    Attributes:
        objects: So many are marked.
        ap: Average precision with the percentile bootstrap over images; NaN where no object is marked.
        precision: [R] the best precision at the recall asked for or at a higher one; 0 where none is reached.
    """

    objects: int
    ap: Interval
    precision: Floats


def class_precisions(found: APs, recalls_R: Floats) -> list[ClassPrecision | None]:
    """Each class, in the data set's order; None for one that does not occur.

    Args:
        found: With classes.
        recalls_R: Where curves are sampled, in [0, 1].
    """
    images = found.objects.shape[1]
    made: list[ClassPrecision | None] = []
    for k, (value, drawn_D) in enumerate(zip(_values(found), _draws(found).T, strict=True)):
        objects = int(found.objects[k].sum())
        if not objects:
            made.append(None)
            continue
        interval = from_draws(np.array([value]), drawn_D[~np.isnan(drawn_D)], images)
        made.append(ClassPrecision(objects, interval, precision_at(found.curves[k][0], objects, recalls_R)))
    return made


def class_changes(after: APs, before: APs) -> list[Interval | None]:
    """AP50(after) - AP50(before) of each class, with the percentile bootstrap over images, resampled for both alike.

    None for a class that does not occur.
    """
    if after.objects.shape != before.objects.shape or (after.objects != before.objects).any():
        raise ValueError("a paired difference needs the same images and objects for both")
    values_K, draws_DK = _values(after) - _values(before), _draws(after) - _draws(before)
    made: list[Interval | None] = []
    for value, drawn_D in zip(values_K.tolist(), draws_DK.T, strict=True):
        if np.isnan(value):
            made.append(None)
            continue
        low, high = np.nanquantile(drawn_D, [0.025, 0.975])
        made.append(Interval(value, float(low), float(high), "paired bootstrap"))
    return made


def precision_at(curve: Curve, objects: float, recalls_R: Floats) -> Floats:
    """[R] the best precision at each recall or at a higher one, as COCO's average precision takes it; 0 where none is reached.

    Example:
        >>> met_missed_met = Curve(np.array([0, 1]), np.array([0]), np.array([1]))
        >>> [round(p, 2) for p in precision_at(met_missed_met, 4.0, np.array([0.0, 0.25, 0.5, 0.75])).tolist()]
        [1.0, 1.0, 0.67, 0.0]
    """
    hits = len(curve.hits)
    if not hits:
        return np.zeros(len(recalls_R))
    number_P = np.arange(1, hits + 1, dtype=np.float64)
    misses_P = np.cumsum(np.bincount(curve.before, minlength=hits))
    best_P = np.maximum.accumulate((number_P / (number_P + misses_P))[::-1])[::-1]
    place_R = np.searchsorted(number_P / objects, recalls_R, side="left")
    reached: Floats = np.where(place_R < hits, best_P[np.minimum(place_R, hits - 1)], 0.0)
    return reached


def _values(found: APs) -> Floats:
    """[K] AP50 of each class; NaN where it does not occur."""
    ones_1I = np.ones((1, found.objects.shape[1]))
    values_K: Floats = average_precisions(found.curves, found.objects, ones_1I, AT_HALF)[0]
    return values_K


def _draws(found: APs) -> Floats:
    """[D, K]: each class's AP50 on each resample of the images; NaN where the class is not in it."""
    images = found.objects.shape[1]
    parts = [average_precisions(found.curves, found.objects, w_DI, AT_HALF) for w_DI in resamples(images, 250)]
    return np.concatenate(parts)
