"""The head that brings features of frozen images into the space of a frozen text tower. Knows tensors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.heads.reduction import Reduction

FIRST_SCALE = 1 / 0.07
"""Where CLIP's factor on cosine similarities starts."""

LARGEST_SCALE = 100.0
"""Where CLIP cuts it."""


class AlignmentHead(nn.Module):
    """Image: u = n(W z + b) of the token z = reduction(x); text: v = n(t + A (t - m)), with n(y) = y / |y|.

    The reduction and the texts' mean m are buffers; A starts at zero, so that texts start where their tower puts them.

    Args:
        features: Length F of the read-out features.
        reduced: Length D of the token.
        width: Length E of the text embeddings.
        hidden: Width of a hidden layer (GELU) before W; 0 for none.
        dropout: Share of the token's entries that is dropped in training.
        text_side: Whether A is learnt; else texts stay as they are.

    Example:
        >>> head = AlignmentHead(features=6, reduced=4, width=3)
        >>> head.images(torch.randn(2, 6)).shape, head.texts(torch.eye(3)[:2]).shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    mean_E: Tensor

    def __init__(
        self, features: int, reduced: int, width: int, hidden: int = 0, dropout: float = 0.0, text_side: bool = True
    ) -> None:
        super().__init__()
        self.reduction = Reduction(features, reduced)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Sequential(nn.Linear(reduced, hidden), nn.GELU()) if hidden else nn.Identity()
        self.image = nn.Linear(hidden or reduced, width)
        self.text = nn.Linear(width, width, bias=False) if text_side else None
        if self.text is not None:
            nn.init.zeros_(self.text.weight)
        self.register_buffer("mean_E", torch.zeros(width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def images(self, x_BF: Tensor) -> Tensor:
        """u [B, E], of unit length."""
        return self.of_tokens(self.reduction(x_BF))

    def of_tokens(self, z_BD: Tensor) -> Tensor:
        """u [B, E] of tokens that `reduction` made."""
        return F.normalize(self.image(self.hidden(self.dropout(z_BD))), dim=1)

    def texts(self, t_BE: Tensor) -> Tensor:
        """v [B, E], of unit length."""
        if self.text is None:
            return F.normalize(t_BE, dim=1)
        return F.normalize(t_BE + self.text(t_BE - self.mean_E), dim=1)

    def scale(self) -> Tensor:
        """The factor s on cosine similarities."""
        return self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
