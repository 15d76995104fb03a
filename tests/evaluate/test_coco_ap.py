"""COCO average precision: equal to pycocotools, truth in gives 1, and resamples are what evaluating the resampled images gives."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keepsight.core import Objects, Rle, SceneDataset, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.masks import encode_mask
from keepsight.evaluate.coco import (
    APs,
    Kind,
    Located,
    ap_difference,
    ap_draws,
    ap_interval,
    average_precision,
    coco_results,
)
from keepsight.evaluate.resampled import resamples


def encoded(masks_NHW: np.ndarray) -> tuple[Rle, ...]:
    return tuple(encode_mask(mask) for mask in masks_NHW)


SIDE, CLASSES = 40, ("cup", "hat", "shoe", "never")


def _masks(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Ellipses in boxes, [N, SIDE, SIDE] bool, at least one pixel each."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    found = np.zeros((len(boxes), SIDE, SIDE), dtype=bool)
    for n, (left, top, right, bottom) in enumerate(boxes):
        a, b = max((right - left) / 2, 1.0), max((bottom - top) / 2, 1.0)
        found[n] = ((x - (left + right) / 2) / a) ** 2 + ((y - (top + bottom) / 2) / b) ** 2 <= 1
        found[n, int(top), int(left)] = True
    return found


def _boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner, size = rng.uniform(0, 26, (n, 2)), rng.uniform(4, 14, (n, 2))
    return np.concatenate([corner, np.minimum(corner + size, SIDE - 1)], axis=1).astype(np.float32)


def scenes(n: int = 24, seed: int = 0) -> SceneDataset:
    """Images with 0 to 4 objects, some of them crowds; ids that are neither ordered nor consecutive; a class that never occurs."""
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(n):
        count = int(rng.integers(0, 5))
        boxes = _boxes(rng, count)
        crowd = rng.random(count) < 0.15
        objects.append(Objects(boxes, rng.integers(0, 3, count), crowd, encoded(_masks(rng, boxes))))
    ids = tuple(int(i) for i in rng.permutation(1000)[:n])
    images = ArrayImages(np.zeros((n, SIDE, SIDE, 3), np.uint8))
    sizes = np.full((n, 2), SIDE)
    captions, parts = ((),) * n, ("test",) * n
    return SceneDataset("scenes", images, sizes, tuple(objects), captions, CLASSES, (7, 3, 90, 12), ids, parts)


def answers(dataset: SceneDataset, seed: int = 1, noise: float = 1.0) -> list[Located]:
    """The truth moved about, sometimes of another class, sometimes twice or not at all, and answers out of the blue."""
    rng = np.random.default_rng(seed)
    found = []
    for objects in dataset.objects:
        keep = rng.random(len(objects.classes)) < 0.85
        boxes, labels = objects.boxes[keep], objects.classes[keep]
        boxes = np.concatenate([boxes, boxes[: len(boxes) // 2], _boxes(rng, 3)])
        labels = np.concatenate([labels, labels[: len(labels) // 2], rng.integers(0, 4, 3)])
        boxes = np.clip(np.sort((boxes + rng.normal(0, noise, boxes.shape)).reshape(-1, 2, 2), axis=1), 0, SIDE - 1)
        boxes = boxes.reshape(-1, 4).astype(np.float32)
        wrong = rng.random(len(labels)) < 0.2
        labels = np.where(wrong, rng.integers(0, 4, len(labels)), labels)
        scores = rng.random(len(labels)).astype(np.float32)
        found.append(Located(boxes, labels, scores, encoded(_masks(rng, boxes))))
    return found


def _reference(dataset: SceneDataset, found: list[Located], indices: np.ndarray, kind: Kind, agnostic: bool) -> Any:
    """pycocotools on the published formats: instances with the set's own ids, and our results JSON, read back."""
    rows = [
        {
            "image_id": dataset.image_ids[i],
            "category_id": dataset.category_ids[k],
            "iscrowd": int(crowd),
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "area": float((b[2] - b[0]) * (b[3] - b[1])),
            "segmentation": {"size": list(mask.size), "counts": mask.counts.decode()},
        }
        for i in indices
        for b, k, crowd, mask in zip(*(getattr(dataset.objects[i], a) for a in ("boxes", "classes", "crowd", "masks")), strict=True)
    ]  # fmt: skip
    marked = COCO()
    marked.dataset = {
        "images": [{"id": dataset.image_ids[i], "height": SIDE, "width": SIDE} for i in indices],
        "categories": [{"id": c, "name": n} for c, n in zip(dataset.category_ids, dataset.classes, strict=True)],
        "annotations": [{**row, "id": n} for n, row in enumerate(rows, start=1)],
    }
    results = json.loads(json.dumps(coco_results(found, dataset, indices)))
    for one in results:
        one.pop("bbox" if kind == "segm" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        marked.createIndex()
        evaluation = COCOeval(marked, marked.loadRes(results), kind)
        evaluation.params.useCats = int(not agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def dataset() -> SceneDataset:
    return scenes()


@pytest.fixture(scope="module")
def found(dataset: SceneDataset) -> list[Located]:
    return answers(dataset)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equal_to_pycocotools(dataset: SceneDataset, found: list[Located], kind: Kind, agnostic: bool) -> None:
    indices = np.arange(3, 24)
    ours = average_precision(found[3:], dataset, indices, kind, agnostic)
    theirs = _reference(dataset, found[3:], indices, kind, agnostic)
    assert 0.05 < ours.ap < ours.ap50 < 0.95
    # Results carry two decimals of a pixel and five of a score, which moves no match here.
    np.testing.assert_allclose([ours.ap, ours.ap50, ours.ap75], theirs.stats[:3], atol=1e-9)
    assert ours.objects.sum() == sum((~dataset.objects[i].crowd).sum() for i in indices)
    if agnostic:
        assert ours.classes == {}
        return
    # pycocotools has the classes in the order of their ids.
    precision_RK = theirs.eval["precision"][0, :, :, 0, 2]
    by_id = dict(zip(sorted(dataset.category_ids), precision_RK.mean(axis=0), strict=True))
    for name, identifier in zip(dataset.classes, dataset.category_ids, strict=True):
        expected = np.nan if by_id[identifier] < 0 else by_id[identifier]
        np.testing.assert_allclose(ours.classes[name], expected, atol=1e-9)
    assert np.isnan(ours.classes["never"])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_truth_in_gives_all(dataset: SceneDataset, kind: Kind) -> None:
    """Crowds are no answers; every other object is."""
    perfect = [
        Located(o.boxes, o.classes, np.ones(len(o.classes), np.float32), o.masks).rows(np.flatnonzero(~o.crowd))  # type: ignore[arg-type]
        for o in dataset.objects
    ]
    for agnostic in (False, True):
        figures = average_precision(perfect, dataset, np.arange(24), kind, agnostic)
        assert (figures.ap, figures.ap50, figures.ap75) == (1.0, 1.0, 1.0)


def test_an_answer_within_a_crowd_is_no_miss(dataset: SceneDataset) -> None:
    crowded = next(i for i, o in enumerate(dataset.objects) if o.crowd.any() and not o.crowd.all())
    objects = dataset.objects[crowded]
    own, region = np.flatnonzero(~objects.crowd), np.flatnonzero(objects.crowd)
    both = np.concatenate([region, own])
    scores = np.linspace(1, 0.5, len(both), dtype=np.float32)  # what lies in the crowd is said first
    answer = Located(objects.boxes[both], objects.classes[both], scores)
    assert average_precision([answer], dataset, np.array([crowded]), "bbox").ap50 == 1.0
    elsewhere = Located(objects.boxes[both] * 0 + [0, 0, 1, 1], objects.classes[both], scores)
    assert average_precision([elsewhere], dataset, np.array([crowded]), "bbox").ap50 == 0.0


def test_a_resample_is_the_evaluation_of_its_images(dataset: SceneDataset, found: list[Located]) -> None:
    """Each image as often as the resample holds it, written out and given to pycocotools."""
    whole = average_precision(found, dataset, np.arange(24), "bbox")
    draws = [ap_draws(whole, metric) for metric in ("ap", "ap50", "ap75")]
    for d, weights in enumerate(next(iter(resamples(24, 250)))[:2]):
        rows = np.repeat(np.arange(24), weights.astype(int))
        drawn = replace(
            dataset,
            objects=tuple(dataset.objects[r] for r in rows),
            image_ids=tuple(range(24)),
        )
        theirs = _reference(drawn, [found[r] for r in rows], np.arange(24), "bbox", False)
        np.testing.assert_allclose([of[d] for of in draws], theirs.stats[:3], atol=1e-9)


def test_intervals_hold_the_figure_and_shrink_when_paired(dataset: SceneDataset, found: list[Located]) -> None:
    first = average_precision(found, dataset, np.arange(24), "bbox")
    better = average_precision(answers(dataset, noise=0.3), dataset, np.arange(24), "bbox")
    alone = ap_interval([first], "ap50")
    assert alone.low < alone.value == first.ap50 < alone.high
    both = ap_interval([first, better], "ap50")
    assert both.kind == "seeds+bootstrap"
    assert both.value == pytest.approx((first.ap50 + better.ap50) / 2)
    paired, itself = ap_difference(better, first, "ap50"), ap_difference(first, first, "ap50")
    assert paired.low <= paired.value == better.ap50 - first.ap50 <= paired.high
    assert (itself.value, itself.low, itself.high) == (0.0, 0.0, 0.0)
    width = (alone.high - alone.low) + (ap_interval([better], "ap50").high - ap_interval([better], "ap50").low)
    assert paired.high - paired.low < width


def test_one_region_said_with_several_classes_is_one_answer_without_classes(dataset: SceneDataset) -> None:
    index = next(i for i, o in enumerate(dataset.objects) if len(o.classes) > 1 and not o.crowd.any())
    objects, n = dataset.objects[index], len(dataset.objects[index].classes)
    twice = np.tile(np.arange(n), 2)
    labels = np.concatenate([(objects.classes + 1) % 3, objects.classes])
    scores = np.concatenate([np.full(n, 0.9), np.linspace(0.8, 0.7, n)]).astype(np.float32)
    answer = Located(objects.boxes[twice], labels, scores, tuple(objects.masks[t] for t in twice))  # type: ignore[misc]
    for kind in ("bbox", "segm"):
        assert average_precision([answer], dataset, np.array([index]), kind, class_agnostic=True).ap == 1.0  # type: ignore[arg-type]
        assert average_precision([answer], dataset, np.array([index]), kind).ap < 1.0  # type: ignore[arg-type]


def test_doubt_about_the_class_is_no_doubt_about_the_object() -> None:
    """.3 for each of three classes outranks .5 for one where classes are ignored: 1 - .7^3 = .657."""
    boxes = np.array([[0, 0, 9, 9], [20, 20, 30, 30]], np.float32)
    objects = Objects(boxes[:1], np.array([0]), np.array([False]), (None,))
    dataset = replace(scenes(1), objects=(objects,))
    scores = np.array([0.5, 0.3, 0.3, 0.3], np.float32)
    answer = Located(boxes[[1, 0, 0, 0]], np.array([0, 0, 1, 2]), scores)
    assert average_precision([answer], dataset, np.array([0]), "bbox", class_agnostic=True).ap == 1.0
    assert average_precision([answer], dataset, np.array([0]), "bbox").ap == pytest.approx(0.5)


def _bare(o: Objects) -> Objects:
    return Objects(o.boxes, o.classes, o.crowd, (None,) * len(o.masks))


def test_bad_input_is_said(dataset: SceneDataset, found: list[Located]) -> None:
    with pytest.raises(UserError, match="no marked objects"):
        average_precision(found, replace(dataset, has_objects=False), np.arange(24), "bbox")
    bare = replace(dataset, objects=tuple(_bare(o) for o in dataset.objects))
    with pytest.raises(UserError, match="has no mask"):
        average_precision(found, bare, np.arange(24), "segm")
    assert (
        average_precision(found, bare, np.arange(24), "bbox").ap
        == average_precision(found, dataset, np.arange(24), "bbox").ap
    )


def test_nothing_found_and_nothing_there(dataset: SceneDataset) -> None:
    none = Located(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), ())
    nothing = average_precision([none] * 24, dataset, np.arange(24), "segm")
    assert nothing.ap == 0.0
    interval = ap_interval([nothing], "ap")
    assert interval.low == 0.0 < interval.high < 0.2  # 24 images without a hit do not prove that there never is one
    empty = np.array([i for i, o in enumerate(dataset.objects) if not len(o.classes)])
    absent: APs = average_precision([none] * len(empty), dataset, empty, "bbox")
    assert np.isnan(absent.ap50)
    assert np.isnan(ap_interval([absent], "ap50").value)


def test_masks_are_encoded_as_pycocotools_does() -> None:
    masks = _masks(np.random.default_rng(0), _boxes(np.random.default_rng(0), 5))
    for mask, rle in zip(masks, encoded(masks), strict=True):
        theirs = reference_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert (list(rle.size), rle.counts) == (theirs["size"], theirs["counts"])


def test_results_are_the_best_hundred_with_the_sets_own_ids(dataset: SceneDataset) -> None:
    rng = np.random.default_rng(0)
    many = Located(_boxes(rng, 130), rng.integers(0, 4, 130), rng.random(130).astype(np.float32))
    results = coco_results([many], dataset, np.array([5]))
    assert len(results) == 100
    assert {one["image_id"] for one in results} == {dataset.image_ids[5]}
    assert {one["category_id"] for one in results} == set(dataset.category_ids)
    assert [one["score"] for one in results] == sorted((one["score"] for one in results), reverse=True)
    assert "segmentation" not in results[0]
    assert json.loads(json.dumps(results)) == results
