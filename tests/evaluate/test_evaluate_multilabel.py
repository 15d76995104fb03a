"""Mean average precision and AUROC against scikit-learn, weighted, tied and with classes that are missing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from keepsight.evaluate.intervals import DRAWS
from keepsight.evaluate.multilabel import (
    AUROC,
    MAP,
    aurocs,
    average_precisions,
    class_metric,
    map_draws,
    mean_average_precision,
    multilabel_intervals,
)


def some(n: int = 200, k: int = 4, levels: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something of the targets; with `levels`, many are equal."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, k)) < [0.5, 0.2, 0.1, 0.05][:k]).astype(np.int8)
    scores = rng.random((n, k)) + 0.4 * targets
    return (np.floor(scores * levels) if levels else scores), targets


@pytest.mark.parametrize("levels", [0, 5, 1])
def test_both_figures_equal_scikit_learn_under_weights_and_ties(levels: int) -> None:
    scores, targets = some(levels=levels)
    weights = np.random.default_rng(1).integers(0, 4, (3, len(scores))).astype(float)
    weights[0] = 1
    found, areas = average_precisions(scores, targets, weights), aurocs(scores, targets, weights)
    for d, w in enumerate(weights):
        for k in range(targets.shape[1]):
            assert found[d, k] == pytest.approx(average_precision_score(targets[:, k], scores[:, k], sample_weight=w))
            assert areas[d, k] == pytest.approx(roc_auc_score(targets[:, k], scores[:, k], sample_weight=w))
    assert mean_average_precision(scores, targets) == pytest.approx(
        average_precision_score(targets, scores, average="macro")
    )


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    scores, targets = some()
    expected = mean_average_precision(scores[:, :3], targets[:, :3])
    targets[:, 3] = 0
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    found = multilabel_intervals([scores], targets, "abcd")
    assert class_metric("d") not in found
    assert class_metric("c") in found
    assert found[MAP][0].value == pytest.approx(expected)
    assert np.isnan(mean_average_precision(scores, np.zeros_like(targets)))
    assert multilabel_intervals([scores], np.zeros_like(targets), "abcd") == {}


def test_the_bootstrap_copes_with_a_class_that_a_resample_misses() -> None:
    scores, targets = some(60)
    targets[:, 3] = 0
    targets[7, 3] = 1  # missing in about 1 / e of the resamples
    found = multilabel_intervals([scores], targets, "abcd")
    assert {MAP, AUROC, *map(class_metric, "abcd")} == set(found)
    for interval in (found[MAP][0], found[class_metric("d")][0]):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.low < interval.high
    draws = map_draws(scores, targets)
    assert draws.shape == (DRAWS,)
    assert not np.isnan(draws).any()


def test_intervals_are_the_quantiles_of_resampled_figures() -> None:
    scores, targets = some(80, 2)
    draws, rng, n = map_draws(scores, targets), np.random.default_rng(0), 80
    for value in draws[:50]:
        weights = np.bincount(rng.integers(0, n, n), minlength=n)
        assert value == pytest.approx(average_precision_score(targets, scores, average="macro", sample_weight=weights))
    found = multilabel_intervals([scores], targets, "ab")[MAP][0]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_several_seeds_give_one_interval_each_and_one_over_them() -> None:
    scores, targets = some()
    other, _ = some(seed=3)
    found = multilabel_intervals([scores, other, other], targets, "abcd")[MAP]
    assert len(found) == 4
    assert found[3].kind == "seeds+bootstrap"
    assert found[0].kind == "bootstrap"
    assert found[3].value == pytest.approx(np.mean([f.value for f in found[:3]]))
    assert found[3].spread == pytest.approx(np.std([f.value for f in found[:3]], ddof=1))
