"""The content-style head: a token is split into content (the label) and style (everything else). Knows tensors only."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Head
from keepsight.heads.neighbours import SIMILARITIES_AT_ONCE, smoothed_log, vote_logits
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

    Class logits come from the content alone; style and decoder are kept so that a user can look at what was called style. A
    head with a bank (`remember`) also asks the images nearest to the token: with the content network's probabilities p and the
    neighbours' vote q the content is proportional to (p q^w)^(1 / (1 + w)).

    Args:
        features: Length F of the read-out features.
        reduced: Length D of the token z.
        classes: Number of classes K.
        hidden: Width of the content network's first layer; its second has half of it.
        style: Length S of the style; 0 for a head without style and decoder.
        style_hidden: Width of the style network's two layers.
        decoder_hidden: Width of the decoder's first layer; its second has half of it.
        linear: 1 adds a linear path from the token to the class logits, which starts at zero: with many labels the head is then
            no worse than a probe.
        bank: Number N of remembered tokens; 0 for a head without a bank.
        neighbours: How many of them vote.

    Example:
        >>> head = ContentStyleHead(features=6, reduced=4, classes=3, style=2)
        >>> head.decode(head.content(torch.zeros(1, 4)), head.style(torch.zeros(1, 4))).shape
        torch.Size([1, 4])
    """

    bank_ND: Tensor | None
    votes_NK: Tensor | None
    vote_weight: Tensor | None

    def __init__(
        self,
        features: int,
        reduced: int,
        classes: int,
        hidden: int = 256,
        style: int = 16,
        style_hidden: int = 128,
        decoder_hidden: int = 256,
        linear: int = 1,
        bank: int = 0,
        neighbours: int = 10,
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
            "linear": linear,
            "bank": bank,
            "neighbours": neighbours,
        }
        self.reduction = Reduction(features, reduced)
        self.register_buffer("bank_ND", torch.zeros(bank, reduced) if bank else None)
        self.register_buffer("votes_NK", torch.zeros(bank, classes) if bank else None)
        self.register_buffer("vote_weight", torch.zeros(()) if bank else None)
        self.content_network = Perceptron(reduced, hidden, hidden // 2, classes)
        self.linear_path = nn.Linear(reduced, classes) if linear else None
        if self.linear_path is not None:
            nn.init.zeros_(self.linear_path.weight)
            nn.init.zeros_(self.linear_path.bias)
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
        return logits_BK if self.linear_path is None else logits_BK + self.linear_path(z_BD)

    def remember(self, bank_ND: Tensor, votes_NK: Tensor, weight: float) -> ContentStyleHead:
        """A copy of this head with a bank of tokens, compared by their product with a new token of length one, and their class
        probabilities.
        """
        shape = {**self._shape, "bank": len(bank_ND), "neighbours": min(self._shape["neighbours"], len(bank_ND))}
        head = ContentStyleHead(**shape)
        head.load_state_dict(self.state_dict(), strict=False)
        for name, value in (("bank_ND", bank_ND), ("votes_NK", votes_NK), ("vote_weight", torch.tensor(weight))):
            head.get_buffer(name).copy_(value)
        return head

    def pooled_logits(self, z_BD: Tensor) -> Tensor:
        """Log-probabilities [B, K], up to a constant, of content network and bank together; tokens [B, D]."""
        logits_BK = self.content_logits(z_BD)
        if self.bank_ND is None or self.votes_NK is None or self.vote_weight is None:
            return logits_BK
        rows = max(1, SIMILARITIES_AT_ONCE // len(self.bank_ND))
        votes = [self._vote(z_BD[first : first + rows]) for first in range(0, max(len(z_BD), 1), rows)]
        weight = self.vote_weight
        return (smoothed_log(torch.softmax(logits_BK, dim=1)) + weight * torch.cat(votes)) / (1 + weight)

    def _vote(self, z_BD: Tensor) -> Tensor:
        """Smoothed log of the vote [B, K] of the nearest in the bank."""
        assert self.bank_ND is not None
        assert self.votes_NK is not None
        similar_BN = F.normalize(z_BD, dim=1) @ self.bank_ND.T
        similar_Bk, nearest_Bk = similar_BN.topk(self._shape["neighbours"], dim=1)
        return vote_logits(similar_Bk, self.votes_NK[nearest_Bk])

    def content(self, z_BD: Tensor) -> Tensor:
        """Class probabilities [B, K] of tokens [B, D]."""
        return torch.softmax(self.pooled_logits(z_BD), dim=1)

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
        return self.pooled_logits(self.token(x_BF))

    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
        return dict(self._shape)
