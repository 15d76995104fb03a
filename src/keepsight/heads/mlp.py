"""The MLP head: one hidden layer on the token. Knows tensors only."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Head
from keepsight.heads.reduction import Reduction


class MLPHead(Head):
    """logits = V gelu(W z + a) + b of the token z = reduction(x).

    Args:
        features: Length F of the read-out features.
        reduced: Length D of the token.
        classes: Number of classes K.
        hidden: Width H of the hidden layer.

    Example:
        >>> import torch
        >>> MLPHead(features=6, reduced=4, classes=3)(torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """

    def __init__(self, features: int, reduced: int, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.reduction = Reduction(features, reduced)
        self.first = nn.Linear(reduced, hidden)
        self.last = nn.Linear(hidden, classes)

    def token(self, x_BF: Tensor) -> Tensor:
        """The token z [B, D] of features [B, F]."""
        z_BD: Tensor = self.reduction(x_BF)
        return z_BD

    def of_token(self, z_BD: Tensor, keep_BH: Tensor | None = None) -> Tensor:
        """Class logits [B, K] of tokens [B, D]; `keep_BH` multiplies the hidden layer (dropout)."""
        hidden_BH = F.gelu(self.first(z_BD))
        logits_BK: Tensor = self.last(hidden_BH if keep_BH is None else hidden_BH * keep_BH)
        return logits_BK

    def forward(self, x_BF: Tensor) -> Tensor:
        """Class logits [B, K] of features [B, F]."""
        return self.of_token(self.token(x_BF))

    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
        features, reduced = self.reduction.axes_FD.shape
        return {
            "features": features,
            "reduced": reduced,
            "classes": self.last.out_features,
            "hidden": self.first.out_features,
        }
