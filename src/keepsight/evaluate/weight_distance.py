"""How far weights moved. Knows two backbones of the same architecture, and no image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from keepsight.adapters.freeze import block_of_parameters
from keepsight.core import Backbone


@dataclass(frozen=True, slots=True)
class WeightDistance:
    """Relative Frobenius distances ||W - W0|| / ||W0||.

    Attributes:
        total: Over all parameters.
        blocks: Of each block (0: what comes before the first one; depth + 1: what comes after the last); empty where the network
            is no sequence of blocks. What has no weight that differs from zero is left out.
    """

    total: float
    blocks: dict[int, float]


@torch.no_grad()
def weight_distance(before: Backbone, after: Backbone) -> WeightDistance:
    """The distance of the weights `after` from those `before`, summed in float64.

    Raises:
        ValueError: The parameters differ in name or shape.
    """
    old, new = dict(before.network.named_parameters()), dict(after.network.named_parameters())
    if {name: p.shape for name, p in old.items()} != {name: p.shape for name, p in new.items()}:
        raise ValueError("the two networks have different parameters")
    block_of = block_of_parameters(before) if before.block_modules() else {}
    total, blocks = [0.0, 0.0], dict[int, list[float]]()
    for name, p0 in old.items():
        w0 = p0.cpu().double()
        moved, size = (new[name].cpu().double() - w0).square().sum().item(), w0.square().sum().item()
        for sums in (total, *([blocks.setdefault(block_of[name], [0.0, 0.0])] if block_of else ())):
            sums[0] += moved
            sums[1] += size
    return WeightDistance(_ratio(total), {block: _ratio(sums) for block, sums in sorted(blocks.items()) if sums[1] > 0})


def _ratio(sums: list[float]) -> float:
    return float((sums[0] / sums[1]) ** 0.5)
