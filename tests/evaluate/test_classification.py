"""Metrics against scikit-learn and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from keepsight.evaluate.classification import METRICS, accuracy, balanced_accuracy, ece, error, macro_f1


@pytest.fixture(params=[2, 5])
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(request.param)
    labels = rng.choice(request.param, 300, p=rng.dirichlet(np.ones(request.param)))
    logits = rng.normal(size=(300, request.param)) + 1.5 * np.eye(request.param)[labels]
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), labels


def test_metrics_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = case
    ones, predicted = np.ones(len(y)), p.argmax(1)
    assert accuracy(p, y, ones) == pytest.approx(reference.accuracy_score(y, predicted))
    assert error(p, y, ones) == pytest.approx(1 - reference.accuracy_score(y, predicted))
    assert balanced_accuracy(p, y, ones) == pytest.approx(reference.balanced_accuracy_score(y, predicted))
    assert macro_f1(p, y, ones) == pytest.approx(reference.f1_score(y, predicted, average="macro"))


def test_weights_mean_repeated_images(case: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = case
    times = np.random.default_rng(0).integers(0, 4, len(y))
    for metric in METRICS.values():
        repeated = metric(np.repeat(p, times, axis=0), np.repeat(y, times), np.ones(times.sum()))
        assert metric(p, y, times.astype(float)) == pytest.approx(repeated)


def test_ece_equals_a_loop_over_bins(case: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = case
    confidence, correct = p.max(1), p.argmax(1) == y
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert ece(p, y, np.ones(len(y))) == pytest.approx(expected)


def test_ece_of_a_calibrated_and_of_a_sure_but_wrong_classifier() -> None:
    y = np.array([0, 0, 0, 1])
    assert ece(np.tile([0.75, 0.25], (4, 1)), y, np.ones(4)) == pytest.approx(0.0)
    assert ece(np.tile([0.0, 1.0], (4, 1)), y, np.ones(4)) == pytest.approx(0.75)


def test_metrics_do_not_depend_on_the_order_of_classes(case: tuple[np.ndarray, np.ndarray]) -> None:
    p, y = case
    order = np.random.default_rng(1).permutation(p.shape[1])
    for metric in METRICS.values():
        moved = metric(p[:, order], np.argsort(order)[y], np.ones(len(y)))
        assert moved == pytest.approx(metric(p, y, np.ones(len(y))))
