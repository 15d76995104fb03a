"""Critics' losses: reference values, gradients in float64, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from keepsight.objectives.adversarial import critic_loss, fooling_loss, gradient_penalty


def test_the_critic_loss_is_twice_the_log_loss_of_a_balanced_classifier() -> None:
    real, fake = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    chances = torch.sigmoid(torch.cat([real, fake])).numpy()
    expected = 2 * log_loss([1] * 50 + [0] * 50, chances)
    assert critic_loss(real, fake).item() == pytest.approx(expected, rel=1e-9)


def test_it_shows_a_critic_that_won_and_one_that_stalled() -> None:
    assert critic_loss(torch.full((3,), 40.0), torch.full((3,), -40.0)).item() == pytest.approx(0.0, abs=1e-6)
    assert critic_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))
    assert math.isfinite(critic_loss(torch.full((3,), -1e4), torch.full((3,), 1e4)).item())


def test_gradients() -> None:
    real = torch.randn(6, dtype=torch.float64, requires_grad=True)
    fake = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(critic_loss, (real, fake))
    assert torch.autograd.gradcheck(fooling_loss, (fake,))


def test_the_gradient_of_the_fooling_loss_does_not_vanish_where_the_critic_is_sure() -> None:
    fake = torch.full((1,), -30.0, requires_grad=True)
    fooling_loss(fake).backward()
    assert fake.grad is not None
    assert fake.grad.item() == pytest.approx(-1.0, abs=1e-6)


def test_the_gradient_penalty_of_a_linear_critic_is_half_its_squared_weight() -> None:
    critic = nn.Linear(5, 1).double()
    found = gradient_penalty(critic, torch.randn(7, 5, dtype=torch.float64))
    assert found.item() == pytest.approx(0.5 * critic.weight.square().sum().item())
    found.backward()
    assert critic.weight.grad is not None
    torch.testing.assert_close(critic.weight.grad, critic.weight.detach())
