"""Losses that hold a network's predictions to recorded ones. Pure functions: logits in, a scalar out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prediction_distance(logits_BK: Tensor, logits0_BK: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 mean KL(softmax(l0 / T) || softmax(l / T)), nats.

    Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282). With T^2 its gradient keeps its size at any temperature (Hinton
    et al. 2015); the recorded logits l0 get none. The paper's cross-entropy differs by the entropy of the recorded predictions
    alone: here, unchanged predictions give zero.

    Example:
        >>> import torch
        >>> prediction_distance(torch.ones(2, 3), torch.zeros(2, 3)).abs().item() < 1e-6
        True
    """
    log_p = F.log_softmax(logits_BK / temperature, dim=1)
    log_p0 = F.log_softmax(logits0_BK.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_p0, reduction="batchmean", log_target=True)
