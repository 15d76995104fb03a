"""The content-style head: a token is split into content (the label) and style (everything else). Knows tensors only."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Head
from keepsight.heads.reduction import Reduction

Dropout = Callable[[Tensor], Tensor]


class Perceptron(nn.Module):
    """Linear layers with LeakyReLU 0.2 between them.

    Args:
        *widths: Of input, hidden layers and output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Inputs [B, first width] -> [B, last width]; `dropout` is applied after every hidden layer."""
        for layer in list(self.layers)[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            if dropout is not None:
                x = dropout(x)
        out: Tensor = self.layers[-1](x)
        return out


class ContentStyleHead(Head):
    """Content c = softmax(MLP(z)), style s = MLP(z) and decoder z^ = MLP([c; s]) of the token z = reduction(x).

    Class logits come from the content alone; style and decoder are kept so that a user can look at what was called style.

    Args:
        features: Length F of the read-out features.
        reduced: Length D of the token z.
        classes: Number of classes K.
        hidden: Width of the content network's first layer; its second has half of it.
        style: Length S of the style; 0 for a head without style and decoder.
        style_hidden: Width of the style network's two layers.
        decoder_hidden: Width of the decoder's first layer; its second has half of it.

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
        self.content_network = Perceptron(reduced, hidden, hidden // 2, classes)
        if style:
            self.style_network = Perceptron(reduced, style_hidden, style_hidden, style)
            self.decoder = Perceptron(classes + style, decoder_hidden, decoder_hidden // 2, reduced)

    def token(self, x_BF: Tensor) -> Tensor:
        """The token z [B, D] of features [B, F]."""
        z_BD: Tensor = self.reduction(x_BF)
        return z_BD

    def content_logits(self, z_BD: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Class logits [B, K] of tokens [B, D]; `dropout` is applied to the hidden layers."""
        logits_BK: Tensor = self.content_network(z_BD, dropout)
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
