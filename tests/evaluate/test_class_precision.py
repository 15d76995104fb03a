"""Each class's precision: the mean over 101 recalls is COCO's AP50, intervals hold the figure, and changes are paired."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.core import Objects, SceneDataset
from keepsight.data.arrays import ArrayImages
from keepsight.evaluate.class_precision import class_changes, class_precisions, precision_at
from keepsight.evaluate.coco import APs, Located, average_precision
from keepsight.evaluate.precision_curves import Curve

N = 24
CLASSES = ("cup", "hat", "never")


def scenes() -> SceneDataset:
    objects = tuple(
        Objects(
            np.array([[2, 2, 20, 20], [22, 4, 36, 30]], dtype=np.float32),
            np.array([i % 2, 0]),
            np.zeros(2, bool),
            (None,) * 2,
        )
        for i in range(N)
    )
    pixels = np.zeros((N, 40, 40, 3), np.uint8)
    return SceneDataset(
        "set", ArrayImages(pixels), np.full((N, 2), 40), objects, ((),) * N, CLASSES, (1, 2, 3), tuple(range(N)), ("test",) * N
    )  # fmt: skip


def found(seed: int, noise: float) -> APs:
    """Answers near the truth; the more noise, the fewer are right."""
    rng, dataset, answers = np.random.default_rng(seed), scenes(), []
    for objects in dataset.objects:
        boxes = np.concatenate([objects.boxes, objects.boxes]) + rng.normal(0, noise, (4, 4)).astype(np.float32)
        boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        classes = np.concatenate([objects.classes, rng.integers(0, 2, 2)])
        answers.append(Located(boxes.astype(np.float32), classes, rng.random(4).astype(np.float32)))
    return average_precision(answers, dataset, np.arange(N), "bbox")


def test_the_mean_over_recalls_is_the_average_precision() -> None:
    aps = found(0, 3.0)
    made = class_precisions(aps, np.linspace(0, 1, 101))
    for name, one in zip(CLASSES[:2], made, strict=False):
        assert one is not None
        assert one.ap.value == pytest.approx(aps.classes[name])
        assert one.precision.mean() == pytest.approx(aps.classes[name])
        assert one.ap.low <= one.ap.value <= one.ap.high
        assert one.ap.high - one.ap.low > 0.01
        assert (np.diff(one.precision) <= 0).all()
    assert [one.objects for one in made if one] == [36, 12]
    assert made[2] is None


def test_changes_are_paired() -> None:
    good, poor = found(0, 1.0), found(0, 6.0)
    for change, one in zip(class_changes(good, poor), CLASSES, strict=True):
        if one == "never":
            assert change is None
            continue
        assert change is not None
        assert change.value == pytest.approx(good.classes[one] - poor.classes[one])
        assert change.low <= change.value <= change.high
    assert {(c.value, c.low, c.high) for c in class_changes(good, good) if c} == {(0.0, 0.0, 0.0)}


def test_other_images_are_no_pair() -> None:
    aps = found(0, 1.0)
    other = APs(aps.kind, aps.ap, aps.ap50, aps.ap75, aps.classes, aps.objects[:, ::-1], aps.curves)
    with pytest.raises(ValueError, match="same images"):
        class_changes(aps, other)


def test_without_a_hit_precision_is_zero() -> None:
    nothing = Curve(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert precision_at(nothing, 3.0, np.linspace(0, 1, 5)).tolist() == [0] * 5
