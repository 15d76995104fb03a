"""Maps of features in which objects are painted, and their targets: what tests of mask heads share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Target, processes
from keepsight.methods.segmentation import MaskHead

CHANNELS, CLASSES, SIDE, STRIDE = 8, 3, 6, 8
SIZE = SIDE * STRIDE


def painted(objects: tuple[int, ...], seed: int = 0) -> tuple[Tensor, tuple[Target, ...]]:
    """Maps [B, 8, 6, 6] and targets of images with so many ellipses, each in its own place; a class is a direction of features."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(CLASSES, CHANNELS, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    maps, targets = [], []
    for count in objects:
        corners = torch.randperm(4, generator=generator)[:count]
        centres = torch.stack([corners % 2, corners // 2], dim=1) * SIZE / 2 + SIZE / 4
        centres = centres + 4 * torch.rand(count, 2, generator=generator) - 2
        radii = 6 + 4 * torch.rand(count, 2, generator=generator)
        masks = torch.stack(
            [((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 <= 1 for c, r in zip(centres, radii, strict=True)]
            or [torch.empty(0)]
        ).reshape(-1, SIZE, SIZE)  # fmt: skip
        classes = torch.randint(0, CLASSES, (count,), generator=generator)
        cover = F.avg_pool2d(masks.float()[:, None], STRIDE)[:, 0]
        noise = 0.05 * torch.randn(CHANNELS, SIDE, SIDE, generator=generator)
        maps.append(torch.einsum("nc,nhw->chw", codes[classes], cover) + noise)
        targets.append(Target(torch.cat([centres, 2 * radii], dim=1) / SIZE, classes, masks.bool()))
    return torch.stack(maps), tuple(targets)


def gradients() -> dict[str, Tensor]:
    """Of a small mask head on four images, of which each process has its share; averaged over the processes, as DDP does."""
    torch.manual_seed(0)
    config = {"points": 64, "net": {"width": 32, "mask_width": 16, "queries": 6, "decoder_layers": 1}}
    head = MaskHead(CHANNELS, CLASSES, SIZE, config)
    maps, targets = painted((3, 0, 1, 0))
    mine = processes.mine(np.arange(4))
    torch.manual_seed(1)
    found = head(maps[mine], tuple(targets[i] for i in mine))
    sum(found.values(), torch.zeros(())).backward()
    grads = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    return {name: processes.averaged(grad) for name, grad in grads.items()}
