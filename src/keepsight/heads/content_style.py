"""The content-style head: a token is split into content (the label) and style (everything else). Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keepsight.core import Head
from keepsight.heads.reduction import Reduction


class ContentStyleHead(Head):
    """Content c = softmax(MLP(z)), style s = MLP(z) and decoder z^ = MLP([c; s]) of the token z = reduction(x).

    Class logits come from the content alone; style and decoder are kept so that a user can look at what was called style.

    Args:
        features: Length F of the read-out features.
        reduced: Length D of the token z.
        classes: Number of classes K.
        hidden: Width of the content network.
        style: Length S of the style; 0 for a head without style and decoder.
        style_hidden: Width of the style network.
        decoder_hidden: Width of the decoder.

    Example:
        >>> head = ContentStyleHead(features=6, reduced=4, classes=3, style=2)
        >>> head.decode(head.content(torch.zeros(1, 4)), head.style(torch.zeros(1, 4))).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        features: int,
        reduced: int,
        classes: int,
        hidden: int = 256,
        style: int = 16,
        style_hidden: int = 128,
        decoder_hidden: int = 256,
    ) -> None:
        super().__init__()
        self._shape = {
            "features": features,
            "reduced": reduced,
            "classes": classes,
            "hidden": hidden,
            "style": style,
            "style_hidden": style_hidden,
            "decoder_hidden": decoder_hidden,
        }
        self.reduction = Reduction(features, reduced)
        self.content_network = nn.Sequential(nn.Linear(reduced, hidden), nn.GELU(), nn.Linear(hidden, classes))
        if style:
            self.style_network = nn.Sequential(
                nn.Linear(reduced, style_hidden), nn.GELU(), nn.Linear(style_hidden, style)
            )
            self.decoder = nn.Sequential(
                nn.Linear(classes + style, decoder_hidden), nn.GELU(), nn.Linear(decoder_hidden, reduced)
            )

    def token(self, x_BF: Tensor) -> Tensor:
        """The token z [B, D] of features [B, F]."""
        z_BD: Tensor = self.reduction(x_BF)
        return z_BD

    def content_logits(self, z_BD: Tensor) -> Tensor:
        """Class logits [B, K] of tokens [B, D]."""
        logits_BK: Tensor = self.content_network(z_BD)
        return logits_BK

    def content(self, z_BD: Tensor) -> Tensor:
        """Class probabilities [B, K] of tokens [B, D]."""
        return torch.softmax(self.content_logits(z_BD), dim=1)

    def style(self, z_BD: Tensor) -> Tensor:
        """Style [B, S] of tokens [B, D]; near a standard normal distribution over the training images."""
        s_BS: Tensor = self.style_network(z_BD)
        return s_BS

    def decode(self, content_BK: Tensor, style_BS: Tensor) -> Tensor:
        """The token [B, D] of this content and this style."""
        z_BD: Tensor = self.decoder(torch.cat([content_BK, style_BS], dim=1))
        return z_BD

    def forward(self, x_BF: Tensor) -> Tensor:
        """Class logits [B, K] of features [B, F]."""
        return self.content_logits(self.token(x_BF))

    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
        return dict(self._shape)
