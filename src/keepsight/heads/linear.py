"""The linear head, and the standardisation that it shares with the others. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Head


class LinearHead(Head):
    """logits = ((x - mean) / scale) W^T + b, with the standardisation as buffers and W, b as parameters.

    Args:
        features: Length F of the read-out features.
        classes: Number of classes K.

    Example:
        >>> head = LinearHead(features=3, classes=2)
        >>> head(torch.zeros(1, 3)).tolist()
        [[0.0, 0.0]]
    """

    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("scale_F", torch.ones(features))
        self.weight_KF = nn.Parameter(torch.zeros(classes, features))
        self.bias_K = nn.Parameter(torch.zeros(classes))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Logits [B, K]."""
        return F.linear((x_BF - self.mean_F) / self.scale_F, self.weight_KF, self.bias_K)

    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
        classes, features = self.weight_KF.shape
        return {"features": features, "classes": classes}


def standardisation(x_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and scale [F] (standard deviation; 1 where a feature is constant) of the rows.

    Example:
        >>> standardisation(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        (tensor([1., 5.]), tensor([1., 1.]))
    """
    mean_F = x_NF.mean(dim=0)
    scale_F = x_NF.std(dim=0, correction=0)
    constant_F = scale_F <= 1e-6 * mean_F.abs().clamp(min=1e-6)
    return mean_F, torch.where(constant_F, torch.ones_like(scale_F), scale_F)
