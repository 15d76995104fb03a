"""Losses of critics and of those who play against them. Pure functions: scores in, a scalar out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def critic_loss(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Binary cross-entropy of a critic's logits: mean log(1 + e^-real) + mean log(1 + e^fake), nats.

    2 log 2 where the critic knows nothing (it has stalled), 0 where it is always right (it has won). Goodfellow et al. 2014.

    Example:
        >>> round(critic_loss(torch.zeros(4), torch.zeros(2)).item(), 4)
        1.3863
    """
    return F.softplus(-real_B).mean() + F.softplus(fake_B).mean()


def fooling_loss(fake_B: Tensor) -> Tensor:
    """Non-saturating loss of the other side: mean log(1 + e^-fake), nats.

    With the best critic it moves the distribution of fakes towards that of the real ones; its gradient does not vanish while the
    critic is right.

    Example:
        >>> round(fooling_loss(torch.zeros(3)).item(), 4)
        0.6931
    """
    return F.softplus(-fake_B).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real_BD: Tensor) -> Tensor:
    """Half the mean squared length of the critic's gradient at real samples (R1, Mescheder et al. 2018, arXiv 1801.04406, eq. 9).

    It keeps a critic from winning: its scores cannot change arbitrarily fast around what is real.
    """
    inputs = real_BD.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(inputs).sum(), inputs, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()
