"""How much predictions change under a small change of the input, and how steep a linear map is. Pure functions.

All divergences are means over the batch of softmax(a) against softmax(b), nats; zero where the two are equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def kl_divergence(a_BK: Tensor, b_BK: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k), p = softmax(a), q = softmax(b).

    Example:
        >>> round(kl_divergence(torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])).item(), 4)
        0.1438
    """
    log_p, log_q = F.log_softmax(a_BK, dim=1), F.log_softmax(b_BK, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def symmetric_kl(a_BK: Tensor, b_BK: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) = sum_k (p_k - q_k) (log p_k - log q_k): of R3F (Aghajanyan et al. 2020, arXiv 2008.03156)."""
    log_p, log_q = F.log_softmax(a_BK, dim=1), F.log_softmax(b_BK, dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1).mean()


def jensen_shannon(a_BK: Tensor, b_BK: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: at most log 2 (PDR, Cheng et al. 2021, arXiv 2010.12638)."""
    log_p, log_q = F.log_softmax(a_BK, dim=1), F.log_softmax(b_BK, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(dim=1).mean()


def squared_hellinger(a_BK: Tensor, b_BK: Tensor) -> Tensor:
    """sum_k (sqrt p_k - sqrt q_k)^2 / 2: at most 1 (PDR, Cheng et al. 2021, arXiv 2010.12638)."""
    root_p, root_q = (0.5 * F.log_softmax(a_BK, dim=1)).exp(), (0.5 * F.log_softmax(b_BK, dim=1)).exp()
    return 0.5 * (root_p - root_q).square().sum(dim=1).mean()


def largest_singular_value(w_KF: Tensor, steps: int | None = None) -> Tensor:
    """The spectral norm of a matrix, by an SVD, or by `steps` of power iteration from W's row of greatest length.

    Power iteration detaches the vectors (their own gradient vanishes at the solution) and approaches the value from below.

    Example:
        >>> largest_singular_value(torch.diag(torch.tensor([2.0, 1.0])), steps=30).item()
        2.0
    """
    if steps is None:
        values: Tensor = torch.linalg.svdvals(w_KF)
        return values[0]
    fixed_KF = w_KF.detach()
    v_F = F.normalize(fixed_KF[fixed_KF.square().sum(dim=1).argmax()], dim=0)
    for _ in range(steps):
        v_F = F.normalize(fixed_KF.T @ (fixed_KF @ v_F), dim=0)
    u_K = F.normalize(fixed_KF @ v_F, dim=0)
    return u_K @ (w_KF @ v_F)
