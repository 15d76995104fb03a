"""The mean over seeds from records alone: against the function that has the predictions, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from keepsight.core import Result
from keepsight.evaluate.classification import METRICS
from keepsight.evaluate.intervals import interval
from keepsight.evaluate.over_seeds import over_seeds


def record(value: float, half: float, seed: int, **changes: object) -> Result:
    made = Result(
        task="detection", dataset="d", split="test", method="m", backbone="b", readout="r", metric="ap", value=value,
        ci_low=value - half, ci_high=value + half, interval="bootstrap", n=200, labels=5, seed=seed, seeds=1,
    )  # fmt: skip
    return made.model_copy(update=changes)


def test_one_record_is_given_back() -> None:
    assert over_seeds([record(0.5, 0.1, 3)]) == record(0.5, 0.1, 3)


def test_without_scatter_of_images_it_is_the_t_interval_over_seeds() -> None:
    values = [0.5, 0.6, 0.55]
    found = over_seeds([record(v, 0.0, i) for i, v in enumerate(values)])
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))
    assert (found.value, found.seeds, found.seed) == (pytest.approx(0.55), 3, None)


def test_images_that_all_seeds_share_are_no_more_images() -> None:
    found = over_seeds([record(0.5, 0.1, i) for i in range(50)])
    assert found.ci_high - found.value == pytest.approx(0.1, rel=0.02)  # t with 199 degrees of freedom


def test_it_agrees_with_the_interval_from_predictions() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    base = rng.random((400, 1)) * 0.2
    runs = [
        np.hstack([1 - p, p]) for p in (np.clip(labels[:, None] * 0.5 + base + rng.random((400, 1)) * 0.5, 0, 1) for _ in range(3))
    ]  # fmt: skip
    whole = interval(METRICS["accuracy"], runs, labels)
    alone = [interval(METRICS["accuracy"], [run], labels) for run in runs]
    found = over_seeds([record(a.value, 0, i, ci_low=a.low, ci_high=a.high, n=400) for i, a in enumerate(alone)])
    assert found.value == pytest.approx(whole.value)
    # With predictions v is the variance of the mean over seeds, here at most that of one seed: this interval is the wider one.
    assert whole.high - whole.low <= (found.ci_high - found.ci_low) * 1.02
    assert found.ci_high - found.ci_low < 2 * (whole.high - whole.low)


def test_other_metrics_or_images_are_refused() -> None:
    for changes in ({"metric": "cer"}, {"n": 100}, {"split": "validation"}):
        with pytest.raises(ValueError, match="one metric on the same images"):
            over_seeds([record(0.5, 0.1, 0), record(0.5, 0.1, 1, **changes)])
    with pytest.raises(ValueError, match="one metric"):
        over_seeds([])
