"""All metrics at once equal the metrics one by one, on the same resamples."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.evaluate import intervals, resampled
from keepsight.evaluate.classification import METRICS
from keepsight.evaluate.resampled import all_intervals


@pytest.mark.parametrize("seeds", [1, 3])
def test_equals_the_intervals_one_by_one(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "DRAWS", 200)
    monkeypatch.setattr(resampled, "DRAWS", 200)
    monkeypatch.setattr(resampled, "NUMBERS", 4000)  # several portions
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 60)
    truth[truth == 3] = 2  # a class without an image, and one that some resamples lack
    truth[0] = 3
    predictions = [rng.dirichlet(np.ones(5), 60) + 0.3 * np.eye(5)[truth] for _ in range(seeds)]
    predictions = [p / p.sum(axis=1, keepdims=True) for p in predictions]
    found = all_intervals(predictions, truth)
    assert list(found) == list(METRICS)
    for name, metric in METRICS.items():
        expected = [intervals.interval(metric, [p], truth) for p in predictions]
        expected.append(intervals.interval(metric, predictions, truth))
        for got, one in zip(found[name], expected, strict=True):
            assert (got.kind, got.spread is None) == (one.kind, one.spread is None)
            np.testing.assert_allclose(
                (got.value, got.low, got.high), (one.value, one.low, one.high), rtol=0, atol=1e-12
            )


def test_no_error_at_all_still_has_an_interval() -> None:
    truth = np.array([0, 1] * 20)
    (alone, together) = all_intervals([np.eye(2)[truth]], truth)["error"]
    assert alone == together
    assert alone.value == 0
    assert alone.high > 0.05
