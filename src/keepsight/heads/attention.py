"""Transformer layers with positions added to queries and keys, and attention that may be masked or drawn to places.

`nn.TransformerDecoderLayer` adds positions once, before the first layer; detection transformers add them in every layer, to what is
compared and not to what is read (DETR, figure 10). Knows no task.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Config


class LayerConfig(Config):
    """A transformer layer.

    Attributes:
        heads: Attention heads.
        feedforward: Width of the hidden layer between two attentions.
        dropout: After each part; attention weights themselves are never dropped, which costs most of the time on a CPU.
        norm_first: Normalise what enters each part (trains faster), or the sum after it (as DETR did).
    """

    heads: int = 8
    feedforward: int = 256
    dropout: float = 0.0
    norm_first: bool = True


class Attention(nn.Module):
    """Multi-head attention [B, Q, D] x [B, N, D] -> [B, Q, D]; compares with positions, reads without."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {width}")
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        for part in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, asks_BQD: Tensor, keys_BND: Tensor, values_BND: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` broadcasts to [B, heads, Q, N]: bool, True where attention is allowed, or a number added to what is compared."""
        b, q, d = asks_BQD.shape
        split = (b, -1, self.heads, d // self.heads)
        asks, keys = self.query(asks_BQD).view(split), self.key(keys_BND).view(split)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(
                asks.dtype
            )  # under autocast what is compared may be in half precision, and both must be alike
        read: Tensor = F.scaled_dot_product_attention(
            asks.transpose(1, 2), keys.transpose(1, 2), self.value(values_BND).view(split).transpose(1, 2), mask
        )
        out: Tensor = self.out(read.transpose(1, 2).reshape(b, q, d))
        return out


class Part(nn.Module):
    """The residual connection around one part of a layer, with its norm and dropout."""

    def __init__(self, width: int, config: LayerConfig) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(config.dropout)
        self.norm_first = config.norm_first

    def forward(self, x_BND: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x + part(norm(x)), or norm(x + part(x))."""
        if self.norm_first:
            x_BND = x_BND + self.drop(part(self.norm(x_BND)))
            return x_BND
        out: Tensor = self.norm(x_BND + self.drop(part(x_BND)))
        return out


def feedforward(width: int, config: LayerConfig) -> nn.Sequential:
    """The hidden layer of a transformer layer."""
    return nn.Sequential(
        nn.Linear(width, config.feedforward),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.feedforward, width),
    )


class EncoderLayer(nn.Module):
    """Self-attention and a hidden layer over the cells of a map [B, N, D]."""

    def __init__(self, width: int, config: LayerConfig) -> None:
        super().__init__()
        self.attend, self.forwards = Attention(width, config.heads), feedforward(width, config)
        self.attend_part, self.forwards_part = Part(width, config), Part(width, config)

    def forward(self, x_BND: Tensor, position_ND: Tensor) -> Tensor:
        """One layer."""

        def look(x: Tensor) -> Tensor:
            out: Tensor = self.attend(x + position_ND, x + position_ND, x)
            return out

        out: Tensor = self.forwards_part(self.attend_part(x_BND, look), self.forwards)
        return out


class DecoderLayer(nn.Module):
    """Self-attention among queries [B, Q, D], attention of queries to a memory [B, N, D], and a hidden layer."""

    def __init__(self, width: int, config: LayerConfig) -> None:
        super().__init__()
        self.among, self.across = Attention(width, config.heads), Attention(width, config.heads)
        self.forwards = feedforward(width, config)
        self.among_part, self.across_part, self.forwards_part = (Part(width, config) for _ in range(3))

    def forward(
        self,
        x_BQD: Tensor,
        place_BQD: Tensor,
        memory_BND: Tensor,
        position_ND: Tensor,
        among_mask: Tensor | None = None,
        across_mask: Tensor | None = None,
    ) -> Tensor:
        """One layer; `place_BQD` are the queries' positions, masks as in `Attention`."""
        keys_BND = memory_BND + position_ND

        def look_among(x: Tensor) -> Tensor:
            out: Tensor = self.among(x + place_BQD, x + place_BQD, x, among_mask)
            return out

        def look_across(x: Tensor) -> Tensor:
            out: Tensor = self.across(x + place_BQD, keys_BND, memory_BND, across_mask)
            return out

        x_BQD = self.across_part(self.among_part(x_BQD, look_among), look_across)
        out: Tensor = self.forwards_part(x_BQD, self.forwards)
        return out
