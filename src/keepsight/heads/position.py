"""Where the cells of a map are, as coordinates and as sine embeddings. Pure functions; knows no network."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cell_centres(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """The centres (x, y) [h*w, 2] of the cells of a map, row by row, in units of its sides.

    Example:
        >>> cell_centres(1, 2).tolist()
        [[0.25, 0.5], [0.75, 0.5]]
    """
    x_w = (torch.arange(w, device=device) + 0.5) / w
    y_h = (torch.arange(h, device=device) + 0.5) / h
    y_hw, x_hw = torch.meshgrid(y_h, x_w, indexing="ij")
    return torch.stack([x_hw.flatten(), y_hw.flatten()], dim=1)


def sine_embedding(values_NV: Tensor, width: int, range_: float = 16.0) -> Tensor:
    """Sines and cosines of V numbers in [0, 1]: [..., V] -> [..., V * width].

    Angular frequencies are pi * range_^(i / (width/2 - 1)), i = 0 to width/2 - 1: from half a period over the whole side to
    range_ / 2 periods. (DETR's, at most one period a side on normalised coordinates, hardly tell neighbouring cells apart.)

    Example:
        >>> sine_embedding(torch.zeros(3, 2), 8).shape
        torch.Size([3, 16])
    """
    half = width // 2
    if width % 2 or half < 2:
        raise ValueError(f"the width of a sine embedding must be even and at least 4, got {width}")
    powers = torch.arange(half, device=values_NV.device, dtype=torch.float32) / (half - 1)
    angles = values_NV[..., None].float() * (math.pi * range_**powers)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def sine_positions(h: int, w: int, d: int, device: torch.device | None = None) -> Tensor:
    """The sine embedding [h*w, d] of the cells' centres: the first half of d is of x, the second of y; d a multiple of 4.

    Example:
        >>> sine_positions(2, 3, 8).shape
        torch.Size([6, 8])
    """
    if d % 4:
        raise ValueError(f"the width of 2-D positions must be a multiple of 4, got {d}")
    return sine_embedding(cell_centres(h, w, device), d // 2)
