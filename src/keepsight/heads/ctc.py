"""A light reader of one word on a map of features: letters column by column, and greedy decoding. Tensors in and out; no loss.

CTC (Graves et al. 2006) on columns, as in CRNN (Shi et al. 2015), without recurrence: what a column says depends on its
neighbours alone, so that words cannot be learnt by heart from their beginnings.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from keepsight.core import Config
from keepsight.heads.position import sine_embedding

BLANK = 0
"""The class that says no letter; letters are 1 to A."""


class CtcNetConfig(Config):
    """The network.

    Attributes:
        width: Channels; a multiple of 4 and of `heads`.
        heads: Ways in which the rows of a column are weighted.
        convolutions: Residual convolutions over columns, of `kernel` columns each.
        kernel: Odd.
        dropout: Of whole input channels, and of the columns' channels.
    """

    width: int = Field(default=128, ge=4)
    heads: int = Field(default=4, ge=1)
    convolutions: int = Field(default=2, ge=0)
    kernel: int = Field(default=3, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class CtcNet(nn.Module):
    """A map [B, C, h, w] -> logits [B, T, 1 + A], T = w * finer, from left to right.

    Args:
        channels: C.
        letters: A.
        finer: Columns that are made of each of the map's.
        config: The network.
    """

    def __init__(self, channels: int, letters: int, finer: int, config: CtcNetConfig) -> None:
        super().__init__()
        width = config.width
        if width % config.heads or width % 4:
            raise ValueError(f"the width must be a multiple of 4 and of {config.heads} heads, got {width}")
        self.heads, self.finer = config.heads, finer
        self.drop_channels = nn.Dropout1d(config.dropout)
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.weigh = nn.Linear(width, config.heads)
        self.spread = nn.Linear(width, width * finer)
        self.layers = nn.ModuleList(_Columns(width, config) for _ in range(config.convolutions))
        self.letters = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1 + letters))

    def forward(self, map_BChw: Tensor) -> Tensor:
        """All columns."""
        b, _, h, w = map_BChw.shape
        x_BCN = self.drop_channels(map_BChw.flatten(2))
        x_BhwD = self.project(x_BCN.transpose(1, 2)).view(b, h, w, -1)
        y_h = (torch.arange(h, device=x_BhwD.device) + 0.5) / h
        row_hD = sine_embedding(y_h[:, None], x_BhwD.shape[-1])
        x_BhwD = torch.nn.functional.gelu(self.norm(x_BhwD + row_hD[:, None]))
        share_BhwH = self.weigh(x_BhwD).softmax(dim=1)
        x_BwD = (x_BhwD.view(b, h, w, self.heads, -1) * share_BhwH[..., None]).sum(dim=1).flatten(2)
        x_BTD = self.spread(x_BwD).view(b, w * self.finer, -1)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        logits_BTA: Tensor = self.letters(x_BTD)
        return logits_BTA.float()


class _Columns(nn.Module):
    """A residual convolution over columns [B, T, D]."""

    def __init__(self, width: int, config: CtcNetConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.look = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2)
        self.drop = nn.Dropout(config.dropout)
        self.mix = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BDT = self.look(self.norm(x_BTD).transpose(1, 2))
        out: Tensor = x_BTD + self.mix(self.drop(torch.nn.functional.gelu(y_BDT.transpose(1, 2))))
        return out


def decode_greedily(logits_BTA: Tensor) -> list[list[int]]:
    """The best class of every column, with repetitions made one and blanks left out (Graves et al. 2006, 3.2): B lists of letters.

    Example:
        >>> best = torch.tensor([[2, 2, 0, 2, 1, 1, 0]])
        >>> decode_greedily(torch.nn.functional.one_hot(best, 3))
        [[2, 2, 1]]
    """
    found = []
    for row in logits_BTA.argmax(dim=2).tolist():
        kept = [best for place, best in enumerate(row) if best != BLANK and (place == 0 or row[place - 1] != best)]
        found.append(kept)
    return found
