"""A small dense detector on one map of features: at every place classes, a box and its quality. Tensors in, tensors out; no loss.

FCOS (Tian et al. 2019) on one level, with the predicted IoU in place of the centre-ness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Config
from keepsight.heads.position import cell_centres


class DenseNetConfig(Config):
    """The network.

    Attributes:
        width: Channels of the convolutions; a multiple of `groups`.
        convolutions: 3 x 3 convolutions of each of the two branches, classes and boxes.
        doubled: Double the map's sides first, by a transposed convolution.
        groups: Of the group norms.
    """

    width: int = 128
    convolutions: int = 2
    doubled: bool = True
    groups: int = 16


@dataclass(frozen=True, slots=True)
class DenseOutput:
    """What a `DenseNet` says at P places.

    Attributes:
        logits: [B, P, K] of sigmoids.
        distances: [B, P, 4] from the place to the left, top, right and bottom of the box, positive, in units of the input's side.
        quality: [B, P] logits of the IoU that the box is expected to have.
        places: [P, 2] x, y.
        stride: [2] distance of neighbouring places, x and y.
    """

    logits: Tensor
    distances: Tensor
    quality: Tensor
    places: Tensor
    stride: Tensor


class DenseNet(nn.Module):
    """A map [B, C, h, w] -> `DenseOutput`."""

    def __init__(self, channels: int, classes: int, config: DenseNetConfig) -> None:
        super().__init__()
        width = config.width
        self.project = nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(config.groups, width), nn.ReLU())
        self.finer = nn.ConvTranspose2d(width, width, 2, 2) if config.doubled else nn.Identity()
        self.class_branch, self.box_branch = (_branch(config) for _ in range(2))
        self.classes, self.boxes = nn.Conv2d(width, classes, 3, padding=1), nn.Conv2d(width, 5, 3, padding=1)
        for last in (self.classes, self.boxes):
            nn.init.normal_(last.weight, std=0.01)
        # Every class begins at a probability of 0.01, so that the many empty places do not outweigh the objects (focal loss, 3.3).
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, -math.log(99.0))

    def forward(self, map_BChw: Tensor) -> DenseOutput:
        """All places, row by row."""
        x = self.finer(self.project(map_BChw))
        h, w = x.shape[-2:]
        logits_BKP = self.classes(self.class_branch(x)).float().flatten(2)
        boxes_B5P = self.boxes(self.box_branch(x)).float().flatten(2)
        # Distances begin near 0.17 of the side: half of an object of a third of the picture.
        distances_BP4 = F.softplus(boxes_B5P[:, :4].transpose(1, 2)) / 4
        return DenseOutput(
            logits_BKP.transpose(1, 2),
            distances_BP4,
            boxes_B5P[:, 4],
            cell_centres(h, w, x.device),
            torch.tensor([1 / w, 1 / h], device=x.device),
        )


def _branch(config: DenseNetConfig) -> nn.Sequential:
    """3 x 3 convolutions, each with a group norm and a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(config.convolutions):
        layers += [
            nn.Conv2d(config.width, config.width, 3, padding=1, bias=False),
            nn.GroupNorm(config.groups, config.width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
