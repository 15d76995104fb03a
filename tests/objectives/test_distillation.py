"""The distance of predictions: reference, gradient, invariances, degenerate input."""

from __future__ import annotations

import pytest
import torch
from scipy.special import rel_entr, softmax

from keepsight.objectives.distillation import prediction_distance

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, LOGITS0 = (torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_it_is_scipys_relative_entropy_times_the_squared_temperature(temperature: float) -> None:
    p, p0 = (softmax(a.numpy() / temperature, axis=1) for a in (LOGITS, LOGITS0))
    expected = temperature**2 * rel_entr(p0, p).sum(axis=1).mean()
    assert prediction_distance(LOGITS, LOGITS0, temperature).item() == pytest.approx(expected)


def test_gradient_reaches_the_new_predictions_alone() -> None:
    logits, logits0 = LOGITS.clone().requires_grad_(True), LOGITS0.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: prediction_distance(x, LOGITS0), (logits,))
    prediction_distance(logits, logits0).backward()
    assert logits0.grad is None


def test_its_gradient_keeps_its_size_at_any_temperature() -> None:
    def size(temperature: float) -> float:
        logits = LOGITS.clone().requires_grad_(True)
        prediction_distance(logits, LOGITS0, temperature).backward()
        assert logits.grad is not None
        return logits.grad.norm().item()

    assert size(100.0) == pytest.approx(size(50.0), rel=0.05)


def test_zero_where_nothing_changed_and_blind_to_the_order_of_classes_and_a_common_shift() -> None:
    assert prediction_distance(LOGITS, LOGITS).item() == 0
    value = prediction_distance(LOGITS, LOGITS0)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(prediction_distance(LOGITS[:, order], LOGITS0[:, order]), value)
    torch.testing.assert_close(prediction_distance(LOGITS + 7, LOGITS0), value)


def test_degenerate() -> None:
    assert prediction_distance(torch.zeros(1, 1), torch.ones(1, 1)).item() == 0
    sure = torch.tensor([[1e4, -1e4]])
    assert torch.isfinite(prediction_distance(-sure, sure))
