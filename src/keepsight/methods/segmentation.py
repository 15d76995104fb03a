"""Instance segmentation on one map of features: the task head that owns a `MaskNet`, its losses and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Answer, Config, Target, Task, TaskHead
from keepsight.core.processes import averaged
from keepsight.heads.segmentation import PAPER as PAPER_NET
from keepsight.heads.segmentation import MaskNet, MaskNetConfig, MaskOutput
from keepsight.methods.draws import of_step
from keepsight.objectives.masks import (
    centre_loss,
    centre_target,
    mask_bce,
    mask_cost,
    mask_dice,
    point_sample,
    random_points,
    uncertain_points,
)
from keepsight.objectives.matching import Pairs, assign


class SegmentationConfig(Config):
    """A mask head.

    Attributes:
        net: The network.
        points: Random points at which a mask is compared with the truth; Mask2Former takes 12,544 of masks of 200 px and more.
        classes: Weight of the classes' cross-entropy, in the loss and in the matching.
        bce: Weight of the masks' binary cross-entropy, likewise.
        dice: Weight of the masks' dice loss, likewise.
        no_object: Weight of queries that answer for nothing, within the classes' cross-entropy.
        centre: Weight of the centres' focal loss, where queries are proposed.
        most: Answers an image.
    """

    net: MaskNetConfig = MaskNetConfig()
    points: int = 1024
    classes: float = 2.0
    bce: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    centre: float = 1.0
    most: int = 100


PAPER = SegmentationConfig(net=PAPER_NET, points=12_544)
"""ViSFT's settings."""


@dataclass(frozen=True, slots=True)
class _Truth:
    """The objects of a batch, all images together [T], and what losses are divided by.

    Attributes:
        classes: Of each image [N].
        masks: [T, S, S] in the losses' precision; [0, 1, 1] without objects.
        first: The first object of each image.
        points: [1, P, 2] at which predictions and objects are matched.
        at_points: Of each image the masks there [N, P].
        objects: Their number, averaged over the processes, at least 1.
        weight: Sum of the weights of all queries' classes, averaged over the processes.
        generator: Of the step's points, the same on all processes.
    """

    classes: list[Tensor]
    masks: Tensor
    first: list[int]
    points: Tensor
    at_points: list[Tensor]
    objects: Tensor
    weight: Tensor
    generator: torch.Generator | None


class MaskHead(TaskHead):
    """Classes and masks of objects. Losses are those of Mask2Former at every layer, with true masks at the size of the input.

    Args:
        channels: Of the map.
        classes: K.
        size: Side of the input, px: of true masks and of answers.
        config: As such, or as `shape` gives it.
    """

    task: Task = "segmentation"

    def __init__(
        self, channels: int, classes: int, size: int, config: SegmentationConfig | Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.channels, self.count, self.size = channels, classes, size
        self.config = SegmentationConfig.model_validate(config or {})
        self.net = MaskNet(channels, classes, self.config.net)

    def shape(self) -> dict[str, Any]:
        """Keyword arguments of the constructor."""
        config = self.config.model_dump(mode="json")
        return {"channels": self.channels, "classes": self.count, "size": self.size, "config": config}

    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        """`class`, `bce` and `dice` of the last layer, `auxiliary` of those before, and `centre` where queries are proposed."""
        out = self.net(map_BChw)
        truth = self._truth(out, targets)
        layers = [self._layer(*layer, truth) for layer in zip(out.logits, out.masks, strict=True)]
        found = dict(zip(("class", "bce", "dice"), layers[-1], strict=True))
        if len(layers) > 1:
            found["auxiliary"] = torch.stack([sum(layer, out.logits.new_zeros(())) for layer in layers[:-1]]).sum()
        if self.config.net.proposed:
            h, w = map_BChw.shape[-2:]
            centres_Bhw = torch.stack([centre_target(target.boxes.to(out.centres), h, w) for target in targets])
            found["centre"] = self.config.centre * centre_loss(out.centres, centres_Bhw, truth.objects)
        return found

    def _truth(self, out: MaskOutput, targets: tuple[Target, ...]) -> _Truth:
        lengths = [len(target.classes) for target in targets]
        if any(len(target.masks) != n for target, n in zip(targets, lengths, strict=True)):
            raise ValueError("a mask head needs a mask for every object")
        masks = [target.masks for target in targets if len(target.masks)]
        masks_TSS = torch.cat(masks).to(out.masks) if masks else out.masks.new_zeros(0, 1, 1)
        generator = of_step(targets)
        points = random_points(self.config.points, out.masks, generator)
        at_points = torch.split(point_sample(masks_TSS, points.expand(len(masks_TSS), -1, -1)), lengths)
        queries = out.logits.shape[2]
        answering = sum(min(n, queries) for n in lengths)
        weight = answering + self.config.no_object * (len(targets) * queries - answering)
        # Every layer has as many answering queries as every other: one exchange between the processes serves all losses.
        objects, weight_of_all = averaged(out.logits.new_tensor([float(sum(lengths)), weight])).unbind()
        first = [sum(lengths[:i]) for i in range(len(lengths))]
        classes = [target.classes for target in targets]
        return _Truth(
            classes, masks_TSS, first, points, list(at_points), objects.clamp(min=1), weight_of_all, generator
        )

    def _layer(self, logits_BQJ: Tensor, masks_BQHW: Tensor, truth: _Truth) -> tuple[Tensor, Tensor, Tensor]:
        """One layer's weighted losses, with its own matching."""
        pairs = self._match(logits_BQJ, masks_BQHW, truth)
        called_BQ = torch.full(logits_BQJ.shape[:2], self.count, device=logits_BQJ.device)
        for image, (rows, columns) in enumerate(pairs):
            called_BQ[image, rows] = truth.classes[image][columns]
        weights_J = logits_BQJ.new_ones(self.count + 1)
        weights_J[-1] = self.config.no_object
        by_class = F.cross_entropy(logits_BQJ.flatten(0, 1), called_BQ.flatten(), weights_J, reduction="sum")
        image_M = torch.cat([torch.full_like(rows, image) for image, (rows, _) in enumerate(pairs)])
        logits_MHW = masks_BQHW[image_M, torch.cat([rows for rows, _ in pairs])]
        masks_MSS = truth.masks[torch.cat([n + columns for n, (_, columns) in zip(truth.first, pairs, strict=True)])]
        places_MP2 = uncertain_points(logits_MHW.detach(), self.config.points, generator=truth.generator)
        at_MP, truth_MP = point_sample(logits_MHW, places_MP2), point_sample(masks_MSS, places_MP2)
        return (
            self.config.classes * by_class / truth.weight,
            self.config.bce * mask_bce(at_MP, truth_MP, truth.objects),
            self.config.dice * mask_dice(at_MP, truth_MP, truth.objects),
        )

    @torch.no_grad()
    def _match(self, logits_BQJ: Tensor, masks_BQHW: Tensor, truth: _Truth) -> Pairs:
        weights = (self.config.classes, self.config.bce, self.config.dice)
        q = masks_BQHW.shape[1]
        costs = []
        for image, (classes_N, at_NP) in enumerate(zip(truth.classes, truth.at_points, strict=True)):
            at_QP = point_sample(masks_BQHW[image], truth.points.expand(q, -1, -1))
            costs.append(mask_cost(logits_BQJ[image], at_QP, classes_N, at_NP, weights))
        return assign(costs)

    @torch.no_grad()
    def answers(self, map_BChw: Tensor) -> list[Answer]:
        """The best pairs of query and class; masks that cover no pixel are left out.

        The score is the class's probability times the mean probability of the mask's own pixels (Mask2Former, appendix).
        """
        out = self.net(map_BChw)
        return [self._answer(logits, masks) for logits, masks in zip(out.logits[-1], out.masks[-1], strict=True)]

    def _answer(self, logits_QJ: Tensor, masks_QHW: Tensor) -> Answer:
        chance_QK = logits_QJ.softmax(dim=1)[:, :-1]
        chance_A, pair_A = chance_QK.flatten().topk(min(self.config.most, chance_QK.numel()))
        fine_QSS = F.interpolate(masks_QHW[None], (self.size, self.size), mode="bilinear", align_corners=False)[0]
        inside_QSS = fine_QSS > 0
        pixels_Q = inside_QSS.sum(dim=(1, 2))
        sure_Q = (fine_QSS.sigmoid() * inside_QSS).sum(dim=(1, 2)) / pixels_Q.clamp(min=1)
        query_A = pair_A.div(self.count, rounding_mode="floor")
        score_A, order_A = (chance_A * sure_Q[query_A]).sort(descending=True, stable=True)
        kept_A = pixels_Q[query_A[order_A]] > 0
        order_A = order_A[kept_A]
        query_A = query_A[order_A]
        return Answer(
            mask_boxes(inside_QSS)[query_A], pair_A[order_A] % self.count, score_A[kept_A], inside_QSS[query_A]
        )


def mask_boxes(masks_NSS: Tensor) -> Tensor:
    """The boxes [N, 4] of the pixels of masks: left, top, right, bottom, in units of the sides; zeros for an empty mask.

    Example:
        >>> mask_boxes(torch.tensor([[[False, True], [False, True]]])).tolist()
        [[0.5, 0.0, 1.0, 1.0]]
    """
    sides = []
    for across in (1, 2):  # columns of which some row is covered, then rows of which some column is
        covered_NS = masks_NSS.any(dim=across)
        s = covered_NS.shape[1]
        first_N = covered_NS.float().argmax(dim=1)
        last_N = s - covered_NS.flip(1).float().argmax(dim=1)
        sides.append((first_N / s, torch.where(covered_NS.any(dim=1), last_N / s, 0.0)))
    (left_N, right_N), (top_N, bottom_N) = sides
    return torch.stack([left_N, top_N, right_N, bottom_N], dim=1)
