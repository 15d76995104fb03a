"""Who stops: by rank, surely, along a curve."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.core import Dataset
from keepsight.data.arrays import ArrayImages
from keepsight.evaluate.classification import Floats
from keepsight.recipes.compare_rules import Judge, along_curve, best_of, curve_choice, verdicts, verdicts_under_limit

N = 40


@pytest.fixture
def judge() -> Judge:
    labels = (np.arange(N) % 2).astype(np.int64)
    return Judge(
        Dataset("two", ArrayImages(np.zeros((N, 2, 2), np.uint8)), labels, ("a", "b"), ("",) * N), np.arange(N)
    )


def wrong_on(judge: Judge, *images: int) -> Floats:
    said = judge.dataset.labels.copy()
    said[list(images)] = 1 - said[list(images)]
    return np.eye(2)[said]


def test_out_of_the_better_half_and_surely_worse(judge: Judge) -> None:
    predicted = {
        "best": wrong_on(judge),
        "same": wrong_on(judge),
        "little": wrong_on(judge, 0, 1, 2, 3),  # 4 to 0: p = 1/16
        "much": wrong_on(judge, 0, 1, 2, 3, 4),  # 5 to 0: p = 1/32
    }
    found = verdicts(judge, predicted)
    assert {name: v.goes_on for name, v in found.items()} == {"best": True, "same": True, "little": True, "much": False}
    assert "rank 4 of 4, surely worse than best" in found["much"].reason
    assert "not surely worse" in found["little"].reason
    figure = found["much"].figure
    assert figure is not None
    assert (figure.value, figure.n) == (5 / N, N)
    assert figure.low < figure.value < figure.high
    by_rank = verdicts(judge, predicted, before={"best"}, safe={"much"}, by_rank=True)
    assert {name: v.goes_on for name, v in by_rank.items()} == {"same": True, "little": False, "much": True}


def test_under_a_limit_only_the_frozen_ones_are_a_measure(judge: Judge) -> None:
    predicted = {"frozen": wrong_on(judge, 0), "tuned": wrong_on(judge, *range(4)), "bad": wrong_on(judge, *range(20))}
    found = verdicts_under_limit(judge, predicted, {"frozen"}, "frozen")
    assert {name: v.goes_on for name, v in found.items()} == {"tuned": True, "bad": False}
    assert all(v.goes_on for v in verdicts_under_limit(judge, predicted, (), None).values())


def test_the_cheaper_of_equals_is_the_better_one(judge: Judge) -> None:
    assert best_of(judge, {"dear": wrong_on(judge, 1), "cheap": wrong_on(judge, 2)}, ["cheap", "dear"]) == "cheap"
    assert best_of(judge, {}, ["cheap"]) is None


def test_a_fold_is_measured_at_the_alpha_that_the_others_choose(judge: Judge) -> None:
    folds = [Judge(judge.dataset, np.arange(i, N, 3)) for i in range(3)]
    good, bad = wrong_on(judge), wrong_on(judge, *range(N))

    def curve(fold: Judge, best: int) -> Floats:
        return np.stack([(good if a == best else bad)[fold.indices] for a in range(3)])

    curves = [curve(folds[0], 2), curve(folds[1], 1), curve(folds[2], 1)]
    assert curve_choice(folds, curves, (0.0, 0.5, 1.0)) == 0.5
    told = along_curve(folds, curves, (0.0, 0.5, 1.0))
    losses = [
        folds[0].loss(told[: len(folds[0].indices)]),
        folds[1].loss(told[len(folds[0].indices) :][: len(folds[1].indices)]),
    ]
    assert losses[0] == 1  # its own choice would have flattered it
    assert curve_choice(folds[:1], [np.stack([good[folds[0].indices]] * 3)], (0.0, 0.5, 1.0)) == 0.0


def test_multilabel_differences_are_resampled() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (60, 3))
    labels = np.zeros(60, np.int64)
    images = ArrayImages(np.zeros((60, 2, 2), np.uint8))
    dataset = Dataset("many", images, labels, ("a", "b", "c"), ("",) * 60, targets.astype(np.int8))
    judge = Judge(dataset, np.arange(60))
    good, bad = targets + rng.normal(0, 0.3, (60, 3)), rng.random((60, 3))
    assert judge.surely_worse(bad, good)[0]
    assert not judge.surely_worse(good, bad)[0]
    assert judge.loss(good) < judge.loss(bad)
    figure = judge.figure(good)
    assert figure is not None
    assert figure.value == pytest.approx(1 - judge.loss(good))
