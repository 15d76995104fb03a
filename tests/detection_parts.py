"""Maps of features with objects painted into them, and whether a head finds every one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from keepsight.core import Answer, Target
from keepsight.objectives.boxes import to_centres, to_corners

CHANNELS, CLASSES, SIDE = 16, 4, 9


def painted(images: int = 8, seed: int = 0, noise: float = 0.3) -> tuple[Tensor, tuple[Target, ...]]:
    """Maps [B, 16, 9, 9] of noise, with one to three rectangles in which a class's vector is added; classes 0 and 3 occur."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    vectors = torch.randn(CLASSES, CHANNELS, generator=generator)
    maps = noise * torch.randn(images, CHANNELS, SIDE, SIDE, generator=generator)
    targets = []
    for image in range(images):
        boxes, classes = [], []
        for column in range(1 + image % 3):
            left, top = 3 * column, draw(0, 5)
            right, bottom = left + draw(2, 4), top + draw(2, 5)
            name = {0: 0, 1: CLASSES - 1}.get(image if column == 0 else -1, draw(0, CLASSES))
            maps[image, :, top:bottom, left:right] += vectors[name][:, None, None]
            boxes.append([left, top, right, bottom])
            classes.append(name)
        targets.append(Target(to_centres(torch.tensor(boxes) / SIDE), torch.tensor(classes)))
    return maps, tuple(targets)


def finds_all(answers: Sequence[Answer], targets: Sequence[Target]) -> bool:
    """AP50 is 100: every object has a box of its class with an IoU over 0.5 that scores above every false box of all images."""
    true, false = [], [0.0]
    for answer, target in zip(answers, targets, strict=True):
        fits = box_iou(answer.boxes, to_corners(target.boxes)) > 0.5
        fits &= answer.classes[:, None] == target.classes
        free = torch.ones(len(target.classes), dtype=torch.bool)
        for score, row in zip(answer.scores.tolist(), fits, strict=True):
            own = row & free
            if own.any():
                free[own.nonzero()[0]] = False
                true.append(score)
            else:
                false.append(score)
        if free.any():
            return False
    return min(true) > max(false)
