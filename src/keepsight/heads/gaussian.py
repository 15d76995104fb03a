"""The Gaussian head: each class is a normal distribution of the token. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from keepsight.core import Head
from keepsight.heads.reduction import Reduction

ENTRIES_AT_ONCE = 8_000_000
"""Entries of the largest tensor of rows x classes x axes (32 MB in float32)."""


def log_densities(z_ND: Tensor, mean_KD: Tensor, whiten_CDD: Tensor, constant_K: Tensor) -> Tensor:
    """constant_k - |A_k (z_n - mean_k)|^2 / 2 [N, K], where A A^T is the inverse covariance; C is K, or 1 where all share A."""
    classes, axes = mean_KD.shape
    rows = max(1, ENTRIES_AT_ONCE // (classes * axes))
    parts = []
    for first in range(0, max(len(z_ND), 1), rows):
        part_RD = z_ND[first : first + rows]
        apart_KRD = (part_RD - mean_KD[:, None]) @ whiten_CDD.mT
        parts.append(constant_K - apart_KRD.square().sum(dim=2).T / 2)
    return torch.cat(parts)


class GaussianHead(Head):
    """logit_k = log prior_k + log N(z; mean_k, covariance_k) of the token z, up to what is the same for all classes.

    With one covariance for all classes this is linear discriminant analysis, with one for each quadratic.

    Args:
        features: Length F of the read-out features.
        reduced: Length D of the token.
        classes: Number of classes K.
        covariances: 1, or K.

    Example:
        >>> GaussianHead(features=4, reduced=2, classes=3, covariances=1)(torch.zeros(1, 4)).shape
        torch.Size([1, 3])
    """

    mean_KD: Tensor
    whiten_CDD: Tensor
    constant_K: Tensor

    def __init__(self, features: int, reduced: int, classes: int, covariances: int) -> None:
        super().__init__()
        if covariances not in (1, classes):
            raise ValueError(f"covariances must be 1 or the number of classes ({classes}), got {covariances}")
        self.reduction = Reduction(features, reduced)
        self.register_buffer("mean_KD", torch.zeros(classes, reduced))
        self.register_buffer("whiten_CDD", torch.eye(reduced).repeat(covariances, 1, 1))
        self.register_buffer("constant_K", torch.zeros(classes))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Logits [B, K]."""
        return log_densities(self.reduction(x_BF), self.mean_KD, self.whiten_CDD, self.constant_K)

    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
        features, reduced = self.reduction.axes_FD.shape
        return {
            "features": features,
            "reduced": reduced,
            "classes": len(self.mean_KD),
            "covariances": len(self.whiten_CDD),
        }
