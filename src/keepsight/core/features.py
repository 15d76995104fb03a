"""What a backbone gives (`Features`), and which part of it a method works on (`Readout`). Knows no backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from keepsight.core.config import Config
from keepsight.core.errors import UserError

Pool = Literal["cls", "mean", "grid2", "grid3"]
"""How the tokens of one block become one vector: the class token, the mean of the patches, or the patches
averaged within the cells of a 2 x 2 or 3 x 3 grid and concatenated row by row."""

POOLS: tuple[Pool, ...] = get_args(Pool)


@dataclass(frozen=True, slots=True)
class Features:
    """The output of one block of a backbone.

    Attributes:
        cls: Global token [B, C]. A backbone without one gives its own global pooling (attention pooling on the last
            block, else the mean of the patches). Where a model has several summary tokens (RADIO), they are concatenated, so
            C may be a multiple of D.
        patches: Spatial tokens [B, N, D] in row-major order, N = h * w.
        grid: (h, w).
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        h, w = self.grid
        if self.patches.ndim != 3 or self.cls.ndim != 2 or self.patches.shape[1] != h * w:
            raise ValueError(
                f"Features need cls [B, C] and patches [B, h*w, D], got {tuple(self.cls.shape)}, "
                f"{tuple(self.patches.shape)} and grid {self.grid}"
            )

    def pooled(self, pool: Pool) -> Tensor:
        """One vector an image: [B, C] for cls, [B, D] for mean, [B, g*g*D] for a g x g grid.

        A grid finer than the patches' own repeats patches (the rule of adaptive average pooling).

        Example:
            >>> f = Features(torch.zeros(1, 2), torch.arange(16.0).reshape(1, 16, 1), (4, 4))
            >>> f.pooled("grid2").tolist()
            [[2.5, 4.5, 10.5, 12.5]]
        """
        if pool == "cls":
            return self.cls
        if pool == "mean":
            return self.patches.mean(dim=1)
        side = {"grid2": 2, "grid3": 3}[pool]
        b, _, d = self.patches.shape
        map_BDhw = self.patches.transpose(1, 2).reshape(b, d, *self.grid)
        cells_BDgg = F.adaptive_avg_pool2d(map_BDhw, side)
        return cells_BDgg.flatten(2).transpose(1, 2).reshape(b, side * side * d)


class Readout(Config):
    """Which blocks of a backbone are read, and how each is pooled; the vectors are concatenated, block by block.

    Blocks are counted from 1 (the output after that block); negative numbers count from the end, so -1 is the last
    one, which is given with the backbone's final norm. As text: ``8:grid2``, ``6,8,10:mean``, ``last:cls+mean``.

    Example:
        >>> str(Readout.parse("6,8:cls+mean"))
        '6,8:cls+mean'
        >>> Readout.parse("last:cls").blocks
        (-1,)
    """

    blocks: tuple[int, ...] = (-1,)
    pools: tuple[Pool, ...] = ("cls",)

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if not blocks or 0 in blocks or len(set(blocks)) != len(blocks):
            raise ValueError("blocks are counted from 1 (or from -1 backwards), each at most once")
        return blocks

    @model_validator(mode="after")
    def _pools(self) -> Readout:
        if not self.pools or len(set(self.pools)) != len(self.pools):
            raise ValueError("a readout needs at least one pool, each at most once")
        return self

    @classmethod
    def parse(cls, text: str) -> Readout:
        """Read ``BLOCKS:POOLS``; raises UserError for anything else."""
        blocks_text, _, pools_text = text.partition(":")
        try:
            blocks = tuple(-1 if b.strip() == "last" else int(b) for b in blocks_text.split(","))
        except ValueError:
            blocks = ()
        pools = tuple(p.strip() for p in (pools_text or "cls").split("+"))
        bad = [p for p in pools if p not in POOLS]
        if not blocks or 0 in blocks or len(set(blocks)) != len(blocks) or bad or len(set(pools)) != len(pools):
            raise UserError(
                f"Readout {text!r} is not understood: write blocks, a colon and pools, such as '8:grid2', '6,8,10:mean' or "
                f"'last:cls+mean' (pools: {', '.join(POOLS)}; blocks counted from 1), or 'auto'."
            )
        return cls(blocks=blocks, pools=pools)

    def resolved(self, depth: int) -> Readout:
        """The same readout with every block as a number from 1 to depth; raises UserError where there is no such block."""
        resolved = tuple(b if b > 0 else depth + 1 + b for b in self.blocks)
        if any(not 1 <= b <= depth for b in resolved):
            raise UserError(
                f"Readout '{self}' asks for a block that this backbone does not have: it has blocks 1 to {depth}."
            )
        return Readout(blocks=resolved, pools=self.pools)

    def __str__(self) -> str:
        blocks = ",".join("last" if b == -1 else str(b) for b in self.blocks)
        return f"{blocks}:{'+'.join(self.pools)}"

    @property
    def parts(self) -> tuple[tuple[int, Pool], ...]:
        """(block, pool) in the order in which they are concatenated."""
        return tuple((b, p) for b in self.blocks for p in self.pools)

    def read(self, blocks: tuple[Features, ...]) -> Tensor:
        """Pool and concatenate: one `Features` a block (in the order of `self.blocks`) -> [B, F]."""
        return torch.cat([f.pooled(p) for f in blocks for p in self.pools], dim=1)


def feature_map(blocks: tuple[Features, ...]) -> Tensor:
    """The map [B, C, h, w] that task heads work on: patches of the blocks, channel by channel behind each other.

    Every patch of every block is normalised over its channels (layer norm without weights), since blocks before the last come
    without a norm and differ in scale. The class token is not in it.
    """
    h, w = blocks[0].grid
    x_BNC = torch.cat([F.layer_norm(f.patches, f.patches.shape[-1:]) for f in blocks], dim=2)
    return x_BNC.transpose(1, 2).reshape(x_BNC.shape[0], x_BNC.shape[2], h, w)
