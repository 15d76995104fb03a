"""Average precision of boxes and masks as COCO defines it, with intervals over images, and COCO's results format. Knows no model.

Matching is faster-coco-eval's, once an image. A resample of images changes how often an image counts, not what was matched in it,
so that a thousand resamples are a few products of matrices.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keepsight.core.errors import UserError
from keepsight.core.scene import Objects, Rle, SceneDataset
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.intervals import Interval, from_draws
from keepsight.evaluate.multilabel import mean_over_classes
from keepsight.evaluate.precision_curves import Curve, average_precisions, curves_of
from keepsight.evaluate.resampled import resamples

Kind = Literal["bbox", "segm"]
ApMetric = Literal["ap", "ap50", "ap75"]

MOST = 100
"""Answers that count in an image, the best by score."""

_THRESHOLDS: dict[ApMetric, slice] = {"ap": slice(0, 10), "ap50": slice(0, 1), "ap75": slice(5, 6)}
"""Which of the IoU thresholds .50, .55, ... .95 a figure is the mean over."""


@dataclass(frozen=True, slots=True)
class Located:
    """What was found in one stored image, in its own pixels.

    Attributes:
        boxes: [N, 4] left, top, right, bottom, px.
        classes: [N] int64, indices into the data set's classes.
        scores: [N] in [0, 1].
        masks: N masks of the image's size; None from a head that gives none.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        lengths = {len(self.classes), n if self.masks is None else len(self.masks)}
        if self.boxes.shape != (n, 4) or lengths != {n}:
            raise ValueError("boxes [N, 4], classes [N], scores [N] and masks must be of the same answers")

    def rows(self, rows: NDArray[np.int64]) -> Located:
        """Some of the answers, in this order."""
        masks = None if self.masks is None else tuple(self.masks[row] for row in rows)
        return Located(self.boxes[rows], self.classes[rows], self.scores[rows], masks)


@dataclass(frozen=True, slots=True)
class APs:
    """Average precision over I images, each figure in [0, 1]; NaN where no object is marked.

    Attributes:
        kind: Whether boxes or masks were compared.
        ap: Mean over the IoU thresholds .50, .55, ... .95 and over the classes that occur.
        ap50, ap75: At one threshold.
        classes: AP50 of each class by its name; NaN where it does not occur. Empty when classes were ignored.
        objects: [K, I] marked objects of each class in each image, crowds not counted (K is 1 when classes were ignored).
        curves: [K][T] what the figures follow from; with it they can be said of any resample of the images.
    """

    kind: Kind
    ap: float
    ap50: float
    ap75: float
    classes: dict[str, float]
    objects: Floats
    curves: tuple[tuple[Curve, ...], ...]

    def figure(self, metric: ApMetric) -> float:
        """One of the three means."""
        return {"ap": self.ap, "ap50": self.ap50, "ap75": self.ap75}[metric]


def average_precision(
    answers: Sequence[Located],
    dataset: SceneDataset,
    indices: NDArray[np.int64],
    kind: Kind,
    class_agnostic: bool = False,
) -> APs:
    """COCO's average precision of what was found in the images `indices` of a data set.

    In an image the best `MOST` answers count, in each class (over all where classes are ignored). An answer that meets nothing but
    a crowd region counts neither way.

    Args:
        answers: One an image, in the order of `indices`.
        dataset: The truth.
        indices: Images of it, each once.
        kind: Whether boxes or masks are compared.
        class_agnostic: Ignore the classes. One region that was answered with several classes is then one answer, scored by
            the chance that it is of any of them.

    Raises:
        UserError: faster-coco-eval is missing; the set has no marked objects; masks are compared and some object has none.
    """
    if len(answers) != len(indices) or not len(indices):
        raise ValueError("average precision needs one answer an image, and an image")
    if not dataset.has_objects:
        raise UserError(
            f"Data set '{dataset.name}' has no marked objects, so that boxes and masks cannot be scored on it."
        )
    if class_agnostic:
        answers = [_regions(found, kind) for found in answers]
    objects_KI, curves, values_TK = _matched(
        _truth(dataset, indices, kind), _answered(answers, kind), kind, class_agnostic
    )
    means: dict[ApMetric, float] = {
        m: float(mean_over_classes(values_TK[rows]).mean()) for m, rows in _THRESHOLDS.items()
    }
    names = () if class_agnostic else dataset.classes
    by_name = {name: float(values_TK[0, k]) for k, name in enumerate(names)}
    return APs(kind, means["ap"], means["ap50"], means["ap75"], by_name, objects_KI, curves)


def _truth(dataset: SceneDataset, indices: NDArray[np.int64], kind: Kind) -> dict[str, Any]:
    """COCO's instances, with images and classes numbered from 1 in our order (0 is faster-coco-eval's mark of no match)."""
    annotations: list[dict[str, Any]] = []
    for number, index in enumerate(indices, start=1):
        objects = dataset.objects[index]
        if kind == "segm" and any(mask is None for mask in objects.masks):
            raise UserError(
                f"Masks cannot be scored on '{dataset.name}': an object of image {dataset.image_ids[index]} has no mask; "
                "score boxes, or leave such images out."
            )
        annotations.extend(_annotations(objects, number, kind))
    for identifier, annotation in enumerate(annotations, start=1):
        annotation["id"] = identifier
    sizes = dataset.sizes[indices]
    return {
        "images": [{"id": i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(sizes, start=1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.classes, start=1)],
        "annotations": annotations,
    }


def _annotations(objects: Objects, number: int, kind: Kind) -> list[dict[str, Any]]:
    found = []
    for box, label, crowd, mask in zip(objects.boxes, objects.classes, objects.crowd, objects.masks, strict=True):
        one: dict[str, Any] = {
            "image_id": number,
            "category_id": int(label) + 1,
            "iscrowd": int(crowd),
            "bbox": _sided(box),
        }
        one["area"] = one["bbox"][2] * one["bbox"][3]
        found.append(one if kind == "bbox" or mask is None else {**one, "segmentation": _segmentation(mask)})
    return found


def _answered(answers: Sequence[Located], kind: Kind) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for number, found in enumerate(answers, start=1):
        masks = found.masks if kind == "segm" else None
        if kind == "segm" and masks is None:
            raise ValueError("masks are scored, but an answer has none")
        for row, (label, score) in enumerate(zip(found.classes, found.scores, strict=True)):
            one = {"image_id": number, "category_id": int(label) + 1, "score": float(score)}
            place = {"bbox": _sided(found.boxes[row])} if masks is None else {"segmentation": _segmentation(masks[row])}
            results.append({**one, **place})
    return results


def _sided(box: NDArray[np.float32]) -> list[float]:
    """Left, top, width, height."""
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, right - left, bottom - top]


def _segmentation(mask: Rle) -> dict[str, Any]:
    return {"size": list(mask.size), "counts": mask.counts.decode()}


def _regions(found: Located, kind: Kind) -> Located:
    """Each region once, at its first place, with the chance that it is of any class: 1 - product of (1 - score).

    The best score alone would rank an object of doubtful class behind what is hardly an object.
    """
    rows: dict[object, int] = {}
    chances: dict[object, float] = {}
    for row, score in enumerate(found.scores):
        region = found.masks[row].counts if kind == "segm" and found.masks else found.boxes[row].tobytes()
        rows.setdefault(region, row)
        chances[region] = 1 - (1 - chances.get(region, 0.0)) * (1 - float(score))
    once = found.rows(np.array(list(rows.values()), dtype=np.int64))
    return replace(once, scores=np.array(list(chances.values()), dtype=np.float32))


def _matched(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind, class_agnostic: bool
) -> tuple[Floats, tuple[tuple[Curve, ...], ...], Floats]:
    """Objects [K, I], curves [K][T], and average precision [T, K] as faster-coco-eval says it; NaN for a class that does not occur.

    The library gives its matches of an image only as what it would pickle; what follows from them here is therefore compared with
    what it reckons from them itself.
    """
    evaluation = _evaluation(truth, results, kind, class_agnostic)
    states = [each.__getstate__() for each in evaluation._evalImgs_cpp]
    n = len(truth["images"])
    k = 1 if class_agnostic else len(truth["categories"])
    objects_KI = np.array([sum(not ignored for ignored in state[3]) for state in states], dtype=np.float64).reshape(
        k, n
    )
    curves = tuple(curves_of(states[c * n : (c + 1) * n]) for c in range(k))
    values_TK = evaluation.eval["precision"][..., 0, 0].mean(axis=1)
    values_TK[values_TK < 0] = np.nan
    ones_1I = np.ones((1, n))
    ours_TK = np.concatenate([average_precisions(curves, objects_KI, ones_1I, slice(t, t + 1)) for t in range(10)])
    if not np.allclose(ours_TK, values_TK, atol=1e-9, equal_nan=True):
        raise RuntimeError(
            "the matches of this version of faster-coco-eval are not understood; those of version 1.8 are"
        )
    return objects_KI, curves, values_TK


def _evaluation(truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind, class_agnostic: bool) -> Any:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UserError(
            "Scoring boxes and masks needs the package faster-coco-eval: install it with pip install 'keepsight[scenes]'."
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):
        marked = COCO(truth)
        evaluation = COCOeval_faster(marked, marked.loadRes(results), kind, separate_eval=True, rle_iou_max_workers=1)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets, evaluation.params.useCats = [MOST], int(not class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def ap_draws(found: APs, metric: ApMetric) -> Floats:
    """A figure on each of the bootstrap's resamples [draws] of the I images, the same ones for all models; NaN without any object.

    AP is no mean over images: each resample takes the images' matches as often as it holds the image, and AP follows from them.
    """
    thresholds = _THRESHOLDS[metric]
    parts = [
        mean_over_classes(average_precisions(found.curves, found.objects, weights_DI, thresholds))
        for weights_DI in resamples(found.objects.shape[1], 250)
    ]
    return np.concatenate(parts)


def ap_interval(runs: Sequence[APs], metric: ApMetric) -> Interval:
    """The mean of a figure over runs that differ by their seed, on the same images, with its 95 % interval.

    As `intervals.interval` says it: the percentile bootstrap over images for one run, images and seeds together for several. NaN
    where no object is marked; resamples without any are left out.
    """
    values = np.array([run.figure(metric) for run in runs])
    if np.isnan(values).any():
        return Interval(float("nan"), float("nan"), float("nan"), "bootstrap")
    draws = np.mean([ap_draws(run, metric) for run in runs], axis=0)
    return from_draws(values, draws[~np.isnan(draws)], runs[0].objects.shape[1])


def ap_difference(first: APs, second: APs, metric: ApMetric) -> Interval:
    """figure(first) - figure(second) on the same images, with the percentile bootstrap over images, resampled for both alike."""
    if first.objects.shape != second.objects.shape or (first.objects != second.objects).any():
        raise ValueError("a paired difference needs the same images and objects for both")
    value = first.figure(metric) - second.figure(metric)
    if np.isnan(value):
        return Interval(value, value, value, "paired bootstrap")
    draws = ap_draws(first, metric) - ap_draws(second, metric)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high), "paired bootstrap")


def coco_results(
    answers: Sequence[Located], dataset: SceneDataset, indices: NDArray[np.int64], most: int = MOST
) -> list[dict[str, Any]]:
    """COCO's results format: the best answers of each image, with the data set's own image and category ids, as JSON holds it.

    Args:
        answers: One an image, in the order of `indices`.
        dataset: Gives the ids.
        indices: Images of it.
        most: So many answers an image, the best by score.
    """
    results = []
    for found, index in zip(answers, indices, strict=True):
        for row in np.argsort(-found.scores, kind="stable")[:most]:
            one: dict[str, Any] = {
                "image_id": dataset.image_ids[index],
                "category_id": dataset.category_ids[found.classes[row]],
                "bbox": [round(side, 2) for side in _sided(found.boxes[row])],
                "score": round(float(found.scores[row]), 5),
            }
            results.append(one if found.masks is None else {**one, "segmentation": _segmentation(found.masks[row])})
    return results
