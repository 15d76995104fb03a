"""Divergences of predictions and the spectral norm: references, gradients in float64, invariances, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from torch import Tensor

from keepsight.objectives.smoothness import (
    jensen_shannon,
    kl_divergence,
    largest_singular_value,
    squared_hellinger,
    symmetric_kl,
)

GENERATOR = torch.Generator().manual_seed(0)
A, B = (torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
P, Q = (softmax(x.numpy(), axis=1) for x in (A, B))
ALL = [kl_divergence, symmetric_kl, jensen_shannon, squared_hellinger]


def test_references() -> None:
    forward, back = rel_entr(P, Q).sum(axis=1).mean(), rel_entr(Q, P).sum(axis=1).mean()
    assert kl_divergence(A, B).item() == pytest.approx(forward)
    assert symmetric_kl(A, B).item() == pytest.approx(forward + back)
    assert jensen_shannon(A, B).item() == pytest.approx((jensenshannon(P, Q, axis=1) ** 2).mean())
    assert squared_hellinger(A, B).item() == pytest.approx((1 - np.sqrt(P * Q).sum(axis=1)).mean())


@pytest.mark.parametrize("divergence", ALL)
def test_gradients_and_invariances(divergence: object) -> None:
    assert callable(divergence)
    a, b = A.clone().requires_grad_(True), B.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(divergence, (a, b))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(divergence(A[:, order], B[:, order]), divergence(A, B))
    torch.testing.assert_close(divergence(A + 5, B - 3), divergence(A, B))
    assert divergence(A, A).item() == pytest.approx(0, abs=1e-15)
    if divergence is not kl_divergence:
        torch.testing.assert_close(divergence(B, A), divergence(A, B))


def test_opposite_certainties_are_finite_and_meet_the_bounds() -> None:
    sure = torch.tensor([[1e4, -1e4]], requires_grad=True)
    for divergence in ALL:
        value = divergence(sure, -sure.detach())
        (gradient,) = torch.autograd.grad(value, sure)
        assert torch.isfinite(value)
        assert gradient.isfinite().all()
    assert jensen_shannon(sure, -sure).item() == pytest.approx(math.log(2))
    assert squared_hellinger(sure, -sure).item() == pytest.approx(1)


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (1, 5)])
def test_the_spectral_norm_both_ways(shape: tuple[int, int]) -> None:
    w = matrix(*shape).requires_grad_(True)
    expected = np.linalg.norm(w.detach().numpy(), ord=2)
    assert largest_singular_value(w).item() == pytest.approx(expected)
    assert largest_singular_value(w, steps=200).item() == pytest.approx(expected, rel=1e-6)
    assert largest_singular_value(w, steps=1).item() <= expected * (1 + 1e-12)
    assert torch.autograd.gradcheck(largest_singular_value, (w,))
    exact, iterated = (torch.autograd.grad(largest_singular_value(w, steps), w)[0] for steps in (None, 500))
    torch.testing.assert_close(iterated, exact, atol=1e-5, rtol=1e-4)


def test_a_head_of_zeros_has_no_slope() -> None:
    w = torch.zeros(3, 4, requires_grad=True)
    for steps in (None, 5):
        value = largest_singular_value(w, steps)
        (gradient,) = torch.autograd.grad(value, w)
        assert value.item() == 0
        assert gradient.isfinite().all()
