"""The neighbour head: weighted votes of a bank of stored features. Knows tensors only, not where the votes came from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Head

SIMILARITIES_AT_ONCE = 8_000_000
"""Entries of the largest similarity matrix (32 MB), so that memory stays flat however many images are asked for."""

SMOOTHING = 1e-3
"""Share of a vote that is spread evenly over the classes, so that every logit is finite."""


class NeighbourHead(Head):
    """Log of the neighbours' weighted, smoothed vote.

    With u = (x - mean) / scale (times the axes, if the head has some), normalised to length one, and s_n = <u, bank_n>, the k
    entries of the largest s_n vote with weight max(s_n, 0)^3: p = sum_n w_n votes_n / sum_n w_n, and the logits are g log((1 -
    e) p + e / K) with e = 0.001 and the sharpness g (1 unless stored otherwise), which changes probabilities and no decision. A
    vote may be one-hot (a label) or a posterior. With `independent`, votes are the classes that an image has, any number of them,
    and the logits are those of p_k alone, for a sigmoid: log q - log(1 - q) with q = (1 - e) p_k + e / 2.

    Args:
        features: Length F of the read-out features.
        classes: Number of classes K.
        bank: Number N of stored entries.
        k: Neighbours that vote.
        reduced: Length D of the features on the axes; 0 for a head without axes, which compares all F.
        independent: 1 for multi-label data.

    Example:
        >>> head = NeighbourHead(features=2, classes=2, bank=2, k=1)
        >>> head.store(torch.eye(2), torch.eye(2), mean_F=torch.zeros(2), scale_F=torch.ones(2))
        >>> head(torch.tensor([[0.1, 2.0]])).argmax().item()
        1
    """

    mean_F: Tensor
    scale_F: Tensor
    axes_FD: Tensor | None
    bank_NF: Tensor
    votes_NK: Tensor
    sharpness: Tensor

    def __init__(self, features: int, classes: int, bank: int, k: int, reduced: int = 0, independent: int = 0) -> None:
        super().__init__()
        if not 1 <= k <= bank:
            raise ValueError(f"k must lie between 1 and the size of the bank ({bank}), got {k}")
        self.k, self.independent = k, bool(independent)
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("scale_F", torch.ones(features))
        self.register_buffer("axes_FD", torch.zeros(features, reduced) if reduced else None)
        self.register_buffer("bank_NF", torch.zeros(bank, reduced or features))
        self.register_buffer("votes_NK", torch.zeros(bank, classes))
        self.register_buffer("sharpness", torch.ones(()))

    def store(self, x_NF: Tensor, votes_NK: Tensor, mean_F: Tensor, scale_F: Tensor, sharpness: float = 1.0) -> None:
        """Fill the bank with features [N, F] as they were read out, and their votes (rows that sum to one)."""
        self.store_rows(unit_rows(x_NF, mean_F, scale_F), votes_NK, mean_F, scale_F, None, sharpness)

    def store_rows(
        self,
        unit_ND: Tensor,
        votes_NK: Tensor,
        mean_F: Tensor,
        scale_F: Tensor,
        axes_FD: Tensor | None,
        sharpness: float = 1.0,
    ) -> None:
        """Fill the bank with rows of length one that are compared as they are, and what brings new features there."""
        self.sharpness.fill_(sharpness)
        self.mean_F.copy_(mean_F)
        self.scale_F.copy_(scale_F)
        if self.axes_FD is not None and axes_FD is not None:
            self.axes_FD.copy_(axes_FD)
        self.bank_NF.copy_(unit_ND)
        self.votes_NK.copy_(votes_NK)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Logits [B, K]."""
        rows = max(1, SIMILARITIES_AT_ONCE // len(self.bank_NF))
        parts = [self.logits_at_once(x_BF[first : first + rows]) for first in range(0, len(x_BF), rows)]
        return torch.cat(parts) if parts else self.logits_at_once(x_BF)

    def logits_at_once(self, x_BF: Tensor) -> Tensor:
        """What `forward` gives, with memory for B N similarities."""
        similar_BN = unit_rows(x_BF, self.mean_F, self.scale_F, self.axes_FD) @ self.bank_NF.T
        similar_Bk, nearest_Bk = similar_BN.topk(self.k, dim=1)
        votes_BkK = self.votes_NK[nearest_Bk]
        if self.independent:
            return self.sharpness * independent_vote_logits(similar_Bk, votes_BkK)
        return self.sharpness * vote_logits(similar_Bk, votes_BkK)

    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
        classes, features, bank = self.votes_NK.shape[1], len(self.mean_F), len(self.bank_NF)
        reduced = 0 if self.axes_FD is None else self.axes_FD.shape[1]
        shape = {"features": features, "classes": classes, "bank": bank, "k": self.k, "reduced": reduced}
        return shape | {"independent": 1} if self.independent else shape


def unit_rows(x_NF: Tensor, mean_F: Tensor, scale_F: Tensor, axes_FD: Tensor | None = None) -> Tensor:
    """(x - mean) / scale, on the axes if there are some, with every row scaled to length one (a zero row stays zero)."""
    standard_NF = (x_NF - mean_F) / scale_F
    return F.normalize(standard_NF if axes_FD is None else standard_NF @ axes_FD, dim=1)


def vote_logits(similar_Bk: Tensor, votes_BkK: Tensor) -> Tensor:
    """Logits [B, K] of votes [B, k, K] weighted by the cube of the positive part of their similarities [B, k]."""
    return smoothed_log(_chances(similar_Bk, votes_BkK))


def independent_vote_logits(similar_Bk: Tensor, votes_BkK: Tensor) -> Tensor:
    """The same for a sigmoid: each class's weighted share of votes alone, as the logit of (1 - e) p + e / 2."""
    chance_BK = (1 - SMOOTHING) * _chances(similar_Bk, votes_BkK) + SMOOTHING / 2
    return torch.log(chance_BK) - torch.log1p(-chance_BK)


def _chances(similar_Bk: Tensor, votes_BkK: Tensor) -> Tensor:
    # The small constant lets the nearest vote where none is similar at all.
    weights_Bk = similar_Bk.clamp(min=1e-6).pow(3)
    return (weights_Bk[..., None] * votes_BkK).sum(dim=1) / weights_Bk.sum(dim=1, keepdim=True)


def smoothed_log(chance_BK: Tensor) -> Tensor:
    """log((1 - e) p + e / K), finite everywhere."""
    return torch.log((1 - SMOOTHING) * chance_BK + SMOOTHING / chance_BK.shape[-1])
