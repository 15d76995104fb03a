"""Cross-entropy: reference, gradient, invariances, degenerate input."""

from __future__ import annotations

import math

import pytest
import torch

from keepsight.objectives.classification import cross_entropy


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True), torch.tensor(
        [0, 3, 1, 1, 2, 0]
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_reference(case: tuple[torch.Tensor, torch.Tensor], smoothing: float) -> None:
    logits, labels = case
    expected = 0.0
    for row, label in zip(logits.detach().tolist(), labels.tolist(), strict=True):
        norm = math.log(sum(math.exp(v) for v in row))
        for k, v in enumerate(row):
            target = (1 - smoothing) * (k == label) + smoothing / 4
            expected += target * (norm - v) / 6
    assert cross_entropy(logits, labels, smoothing).item() == pytest.approx(expected)


def test_gradient(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = case
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, 0.1), logits)


def test_invariances(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = case
    order, rows = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 3, 1, 0, 2, 4])
    value = cross_entropy(logits, labels)
    torch.testing.assert_close(cross_entropy(logits + 7.0, labels), value)
    torch.testing.assert_close(cross_entropy(logits[:, order], order.argsort()[labels]), value)
    torch.testing.assert_close(cross_entropy(logits[rows], labels[rows]), value)


def test_degenerate() -> None:
    assert cross_entropy(torch.zeros(1, 1), torch.tensor([0])).item() == 0.0
    assert cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([0])).item() == 0.0
