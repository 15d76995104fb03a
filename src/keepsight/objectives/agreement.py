"""Losses that use images without labels: agreement with targets and neighbours, and the balance of a batch. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Mean over the batch of -sum_k target_k log softmax(logits)_k, nats; rows of the target sum to one, or to zero to be left out.

    Example:
        >>> round(soft_cross_entropy(torch.zeros(2, 4), torch.full((2, 4), 0.25)).item(), 4)
        1.3863
    """
    return -(target_BK * F.log_softmax(logits_BK, dim=1)).sum(dim=1).mean()


def neighbour_agreement(chance_BK: Tensor, neighbour_BK: Tensor, smallest: float = 1e-4) -> Tensor:
    """Mean of -log(<c_i, c_j> + smallest): neighbours should be sure of the same class (SCAN, Van Gansbeke et al. 2020, eq. 2).

    Example:
        >>> round(neighbour_agreement(torch.full((1, 2), 0.5), torch.full((1, 2), 0.5), smallest=0.0).item(), 4)
        0.6931
    """
    return -torch.log((chance_BK * neighbour_BK).sum(dim=1) + smallest).mean()


def divergence_from_prior(mean_K: Tensor, prior_K: Tensor) -> Tensor:
    """KL(mean || prior), nats, of the batch's mean probabilities from the classes' prior; not additive over micro-batches.

    Example:
        >>> divergence_from_prior(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])).item()
        0.0
    """
    tiny = torch.finfo(mean_K.dtype).tiny
    return (mean_K * (torch.log(mean_K.clamp(min=tiny)) - torch.log(prior_K.clamp(min=1e-6)))).sum()


def sharpened(chance_BK: Tensor, power: float) -> Tensor:
    """Rows proportional to chance^power; a row of zeros stays one.

    Example:
        >>> sharpened(torch.tensor([[0.6, 0.3, 0.1]]), 2.0).round(decimals=2).tolist()[0][0] > 0.6
        True
    """
    powered_BK = chance_BK.pow(power)
    return powered_BK / powered_BK.sum(dim=1, keepdim=True).clamp(min=torch.finfo(chance_BK.dtype).tiny)


def reconstruction(made_BD: Tensor, target_BD: Tensor, kind: str) -> Tensor:
    """Mean squared error an entry ("mse"), or mean of 1 - cosine an image ("cosine"); the target gets no gradient.

    Example:
        >>> reconstruction(torch.ones(2, 3), torch.ones(2, 3), "cosine").abs().item() < 1e-6
        True
    """
    if kind == "mse":
        return F.mse_loss(made_BD, target_BD.detach())
    return (1 - F.cosine_similarity(made_BD, target_BD.detach(), dim=1)).mean()
