"""Losses on unlabelled images: reference values, gradients in float64, class permutations, degenerate input."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import entropy
from torch.nn import functional as F

from keepsight.objectives.agreement import (
    divergence_from_prior,
    neighbour_agreement,
    reconstruction,
    sharpened,
    soft_cross_entropy,
)

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)


def test_soft_cross_entropy_is_torchs_and_leaves_out_empty_rows() -> None:
    assert soft_cross_entropy(LOGITS, TARGET).item() == pytest.approx(F.cross_entropy(LOGITS, TARGET).item())
    half = TARGET.clone()
    half[3:] = 0
    assert soft_cross_entropy(LOGITS, half).item() == pytest.approx(F.cross_entropy(LOGITS[:3], TARGET[:3]).item() / 2)


def test_divergence_is_scipys_and_zero_only_at_the_prior() -> None:
    mean, prior = TARGET.mean(dim=0), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    assert divergence_from_prior(mean, prior).item() == pytest.approx(entropy(mean.numpy(), prior.numpy()))
    assert divergence_from_prior(prior, prior).item() == pytest.approx(0.0, abs=1e-12)
    assert math.isfinite(divergence_from_prior(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])).item())


def test_gradients() -> None:
    logits = LOGITS.clone().requires_grad_(True)
    prior = torch.full((4,), 0.25, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, TARGET), (logits,))
    assert torch.autograd.gradcheck(lambda x: neighbour_agreement(x.softmax(1), TARGET), (logits,))
    assert torch.autograd.gradcheck(lambda x: divergence_from_prior(x.softmax(1).mean(0), prior), (logits,))
    for kind in ("mse", "cosine"):
        assert torch.autograd.gradcheck(lambda x, k=kind: reconstruction(x, TARGET, k), (logits,))


def test_renaming_the_classes_changes_no_loss() -> None:
    order = torch.tensor([2, 0, 3, 1])
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    chance = torch.softmax(LOGITS, dim=1)
    pairs = [
        (soft_cross_entropy(LOGITS, TARGET), soft_cross_entropy(LOGITS[:, order], TARGET[:, order])),
        (neighbour_agreement(chance, TARGET), neighbour_agreement(chance[:, order], TARGET[:, order])),
        (divergence_from_prior(chance.mean(0), prior), divergence_from_prior(chance[:, order].mean(0), prior[order])),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def test_agreement_is_least_where_both_are_sure_of_the_same_class() -> None:
    sure, even = torch.eye(3), torch.full((3, 3), 1 / 3)
    assert (
        neighbour_agreement(sure, sure) < neighbour_agreement(even, even) < neighbour_agreement(sure, sure.roll(1, 0))
    )
    assert torch.isfinite(neighbour_agreement(sure, sure.roll(1, 0)))


def test_sharpening_keeps_rows_distributions_and_the_order_within_them() -> None:
    out = sharpened(TARGET, 2.0)
    torch.testing.assert_close(out.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(out.argsort(dim=1), TARGET.argsort(dim=1))
    torch.testing.assert_close(sharpened(TARGET, 1.0), TARGET)
    assert torch.equal(sharpened(torch.zeros(1, 3), 2.0), torch.zeros(1, 3))


def test_the_target_of_the_reconstruction_gets_no_gradient() -> None:
    made = torch.randn(3, 5, requires_grad=True)
    target = torch.randn(3, 5, requires_grad=True)
    for kind in ("mse", "cosine"):
        reconstruction(made, target, kind).backward()
    assert target.grad is None
    assert made.grad is not None
    assert reconstruction(3 * target, target, "cosine").item() == pytest.approx(0.0, abs=1e-6)
    assert reconstruction(target + 2, target, "mse").item() == pytest.approx(4.0, rel=1e-5)
