"""Object detection on a map of features: a detection transformer and, as its plain rival, a dense head. Knows no backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.ops import nms

from keepsight.core import Answer, Config, Target, TaskHead
from keepsight.core.processes import averaged
from keepsight.heads.attention import LayerConfig
from keepsight.heads.dense import DenseNet, DenseNetConfig
from keepsight.heads.detection import DetrNet, DetrNetConfig
from keepsight.methods.denoising import Noised, add_noise
from keepsight.objectives.boxes import (
    assign_places,
    class_weights,
    focal_loss,
    from_distances,
    giou_loss,
    l1_loss,
    quality_loss,
    to_corners,
    weighted_cross_entropy,
)
from keepsight.objectives.matching import match_boxes

ANSWERS = 100
"""How many boxes an image gets at most, as COCO's evaluation looks at no more."""


class DetrConfig(Config):
    """The detection transformer and its losses; each weight is both the loss's and the matching's (DETR, section 3.1).

    Attributes:
        net: The network.
        classification: Weight of the classes: focal loss, or cross-entropy where the network has a background.
        l1: Weight of the L1 distance of boxes.
        giou: Weight of the generalised IoU.
        no_object: Weight of "no object" within the cross-entropy.
        denoising: How many times every object comes with noise, in training mode; 0 for never.
        box_noise: See `denoising.add_noise`.
        class_noise: See there.
        overlap: Of two queries whose boxes have a higher IoU only the surer one answers; 1 lets all answer, as in DETR. A decoder
            that learnt for minutes leaves several queries on one object (docs/log.md).
    """

    net: DetrNetConfig = DetrNetConfig()
    classification: float = Field(default=1.0, ge=0)
    l1: float = Field(default=5.0, ge=0)
    giou: float = Field(default=2.0, ge=0)
    no_object: float = Field(default=0.1, gt=0)
    denoising: int = Field(default=3, ge=0)
    box_noise: float = Field(default=0.4, ge=0, lt=1)
    class_noise: float = Field(default=0.2, ge=0, le=1)
    overlap: float = Field(default=0.6, gt=0, le=1)

    @model_validator(mode="after")
    def _noise_needs_boxes(self) -> DetrConfig:
        if self.denoising and not self.net.proposed:
            raise ValueError("denoising needs queries with boxes: set net.proposed, or denoising to 0")
        return self


PAPER_DETR = DetrConfig(
    net=DetrNetConfig(
        width=128,
        encoder_layers=6,
        task_token=True,
        decoder_width=256,
        decoder_layers=6,
        queries=100,
        proposed=False,
        drawn=False,
        background=True,
        layer=LayerConfig(heads=8, feedforward=1024, dropout=0.1, norm_first=False),
    ),
    denoising=0,
    overlap=1.0,
)
"""ViSFT's detection head (published training code): learns over 150,000 steps, and next to nothing in minutes."""


class DetrHead(TaskHead):
    """A detection transformer (`heads.detection`) with matched losses at every layer.

    Losses: "classification", "l1" and "giou", summed over the decoder's layers; the same with "proposal_" of the encoder's
    proposals and with "denoising_" of the noised queries. Denoising belongs to the training of the head: in evaluation mode (a
    frozen head through which a backbone learns) there is none, and no randomness.

    Args:
        channels: C of the map.
        classes: K; class indices are 0 to K - 1, and "no object" is K.
        config: A config, or what `shape` gave of one.
    """

    def __init__(self, channels: int, classes: int, config: DetrConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        self.task = "detection"
        self.channels, self.classes = channels, classes
        self.config = DetrConfig.model_validate(config or {})
        self.net = DetrNet(channels, classes, self.config.net, denoises=self.config.denoising > 0)

    def shape(self) -> dict[str, Any]:
        """Channels, classes and the config."""
        return {"channels": self.channels, "classes": self.classes, "config": self.config.model_dump(mode="json")}

    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        """See the class."""
        config = self.config
        noised = None
        if config.denoising and self.training:
            noised = add_noise(targets, self.classes, config.denoising, config.box_noise, config.class_noise)
        out = self.net(map_BChw, None if noised is None else noised.queries)
        count = object_count(targets, map_BChw)
        found = self._matched("", out.logits, out.boxes, targets, count)
        if config.net.proposed:
            found |= self._matched("proposal_", out.proposal_logits[None], out.proposal_boxes[None], targets, count)
        if noised is not None:
            found |= self._denoised(out.noised_logits, out.noised_boxes, noised, count)
        return found

    def _matched(
        self, prefix: str, logits_LBQJ: Tensor, boxes_LBQ4: Tensor, targets: Sequence[Target], count: Tensor
    ) -> dict[str, Tensor]:
        """The losses of predictions of L layers, each matched with the objects by itself."""
        layers, focal = len(logits_LBQJ), not self.config.net.background
        logits, boxes = logits_LBQJ.flatten(0, 1), boxes_LBQ4.flatten(0, 1)
        names, places = [target.classes for target in targets] * layers, [target.boxes for target in targets] * layers
        weights = (self.config.classification, self.config.l1, self.config.giou)
        pairs = match_boxes(logits, boxes, names, places, weights, focal)
        image_M = torch.cat([torch.full_like(rows, number) for number, (rows, _) in enumerate(pairs)])
        query_M = torch.cat([rows for rows, _ in pairs])
        true_M = torch.cat([own[columns] for own, (_, columns) in zip(names, pairs, strict=True)])
        true_M4 = torch.cat([own[columns] for own, (_, columns) in zip(places, pairs, strict=True)])
        classes_NQ = torch.full(logits.shape[:2], self.classes, dtype=torch.int64, device=logits.device)
        classes_NQ[image_M, query_M] = true_M
        if focal:
            classification = focal_loss(logits, classes_NQ, count)
        else:
            weight_NQ = class_weights(classes_NQ, self.classes, self.config.no_object)
            classification = weighted_cross_entropy(logits, classes_NQ, weight_NQ, averaged(weight_NQ.sum()) / layers)
        return self._weighted(prefix, classification, boxes[image_M, query_M], true_M4, count)

    def _denoised(self, logits_LBMJ: Tensor, boxes_LBM4: Tensor, noised: Noised, count: Tensor) -> dict[str, Tensor]:
        """The losses of noised queries, whose object is known; each group counts as one matching."""
        present_BM, count = noised.queries.present, count * noised.queries.groups
        logits, boxes = logits_LBMJ[:, present_BM], boxes_LBM4[:, present_BM]
        names, true = noised.classes[present_BM].expand(len(logits), -1), noised.boxes[present_BM].expand_as(boxes)
        if self.config.net.background:
            classification = weighted_cross_entropy(logits, names, torch.ones_like(names, dtype=logits.dtype), count)
        else:
            classification = focal_loss(logits, names, count)
        return self._weighted("denoising_", classification, boxes, true, count)

    def _weighted(
        self, prefix: str, classification: Tensor, found: Tensor, true: Tensor, count: Tensor
    ) -> dict[str, Tensor]:
        return {
            f"{prefix}classification": self.config.classification * classification,
            f"{prefix}l1": self.config.l1 * l1_loss(found, true, count),
            f"{prefix}giou": self.config.giou * giou_loss(to_corners(found), to_corners(true), count),
        }

    @torch.no_grad()
    def answers(self, map_BChw: Tensor) -> list[Answer]:
        """The best 100 pairs of a query of the last layer and a class."""
        out = self.net(map_BChw)
        logits_BQJ, boxes_BQ4 = out.logits[-1], to_corners(out.boxes[-1]).clamp(0, 1)
        scores_BQJ = logits_BQJ.softmax(dim=2) if self.config.net.background else logits_BQJ.sigmoid()
        scores_BQK = scores_BQJ[..., : self.classes]
        return [_best(*each, self.config.overlap) for each in zip(boxes_BQ4, scores_BQK, strict=True)]


def _best(boxes_Q4: Tensor, scores_QK: Tensor, overlap: float) -> Answer:
    """The best pairs of a box and a class, of boxes that do not overlap a surer one by more than that."""
    if overlap < 1:
        kept = nms(boxes_Q4, scores_QK.amax(dim=1), overlap)
        boxes_Q4, scores_QK = boxes_Q4[kept], scores_QK[kept]
    classes = scores_QK.shape[1]
    best_N, index_N = scores_QK.flatten().topk(min(ANSWERS, scores_QK.numel()))
    return Answer(boxes_Q4[index_N // classes], index_N % classes, best_N)


def object_count(targets: Sequence[Target], like: Tensor) -> Tensor:
    """The mean number of objects a process, at least 1: what makes averaged gradients those of the whole batch (DETR's loss)."""
    count = torch.tensor(float(sum(len(target.classes) for target in targets)), device=like.device)
    return averaged(count).clamp(min=1)


class DenseConfig(Config):
    """The dense head, its losses and how its boxes are chosen.

    Attributes:
        net: The network.
        classification: Weight of the focal loss of classes.
        giou: Weight of the generalised IoU.
        quality: Weight of the predicted IoU.
        radius: A place learns a box only within so many strides of its centre (centre sampling).
        overlap: Of two places whose boxes have a higher IoU only the surer one answers.
    """

    net: DenseNetConfig = DenseNetConfig()
    classification: float = Field(default=1.0, ge=0)
    giou: float = Field(default=2.0, ge=0)
    quality: float = Field(default=1.0, ge=0)
    radius: float = Field(default=1.5, gt=0)
    overlap: float = Field(default=0.6, gt=0, le=1)


class DenseHead(TaskHead):
    """A small FCOS (`heads.dense`); losses "classification", "giou" and "quality", over the number of places that answer for a box.

    Args:
        channels: C of the map.
        classes: K.
        config: A config, or what `shape` gave of one.
    """

    def __init__(self, channels: int, classes: int, config: DenseConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        self.task = "detection"
        self.channels, self.classes = channels, classes
        self.config = DenseConfig.model_validate(config or {})
        self.net = DenseNet(channels, classes, self.config.net)

    def shape(self) -> dict[str, Any]:
        """Channels, classes and the config."""
        return {"channels": self.channels, "classes": self.classes, "config": self.config.model_dump(mode="json")}

    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        """See the class."""
        out, config = self.net(map_BChw), self.config
        names, boxes = [], []
        for target in targets:
            corners_N4 = to_corners(target.boxes)
            index_P = assign_places(out.places, corners_N4, out.stride, config.radius)
            # Row -1 is "no object": class K, and a box that nothing looks at.
            names.append(torch.cat([target.classes, target.classes.new_full((1,), self.classes)])[index_P])
            boxes.append(torch.cat([corners_N4, corners_N4.new_zeros(1, 4)])[index_P])
        names_BP, boxes_BP4 = torch.stack(names), torch.stack(boxes)
        own_BP = names_BP < self.classes
        count = averaged(own_BP.sum().float()).clamp(min=1)
        found, true = from_distances(out.places, out.distances)[own_BP], boxes_BP4[own_BP]
        return {
            "classification": config.classification * focal_loss(out.logits, names_BP, count),
            "giou": config.giou * giou_loss(found, true, count),
            "quality": config.quality * quality_loss(out.quality[own_BP], found, true, count),
        }

    @torch.no_grad()
    def answers(self, map_BChw: Tensor) -> list[Answer]:
        """The best 100 pairs of a place and a class, scored by the root of class probability times expected IoU."""
        out = self.net(map_BChw)
        boxes_BP4 = from_distances(out.places, out.distances).clamp(0, 1)
        scores_BPK = (out.logits.sigmoid() * out.quality.sigmoid()[..., None]).sqrt()
        return [_best(*each, self.config.overlap) for each in zip(boxes_BP4, scores_BPK, strict=True)]
