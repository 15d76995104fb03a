"""Losses of boxes and of their classes, and which place answers for which box. Pure functions; counts come from the caller.

Boxes are in units of the input's side: "centres" (centre x, centre y, width, height) or "corners" (left, top, right, bottom).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss


def to_corners(centres_N4: Tensor) -> Tensor:
    """Boxes [..., 4] by their centres -> by their corners.

    Example:
        >>> to_corners(torch.tensor([0.5, 0.5, 1.0, 0.5])).tolist()
        [0.0, 0.25, 1.0, 0.75]
    """
    centre, size = centres_N4[..., :2], centres_N4[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_centres(corners_N4: Tensor) -> Tensor:
    """Boxes [..., 4] by their corners -> by their centres.

    Example:
        >>> to_centres(torch.tensor([0.0, 0.25, 1.0, 0.75])).tolist()
        [0.5, 0.5, 1.0, 0.5]
    """
    low, high = corners_N4[..., :2], corners_N4[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def overlaps(one_N4: Tensor, other_N4: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes by their corners, entry by entry; shapes broadcast, so [Q, 1, 4] and [1, N, 4] give [Q, N].

    GIoU = IoU - (hull - union) / hull (Rezatofighi et al. 2019, algorithm 1). Two empty boxes have an IoU of 0, never NaN.

    Example:
        >>> iou, giou = overlaps(torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.5, 0, 1.5, 1]))
        >>> round(iou.item(), 4), round(giou.item(), 4)
        (0.3333, 0.3333)
    """
    tiny = torch.finfo(one_N4.dtype).eps
    shared = _area(torch.maximum(one_N4[..., :2], other_N4[..., :2]), torch.minimum(one_N4[..., 2:], other_N4[..., 2:]))
    hull = _area(torch.minimum(one_N4[..., :2], other_N4[..., :2]), torch.maximum(one_N4[..., 2:], other_N4[..., 2:]))
    union = _area(one_N4[..., :2], one_N4[..., 2:]) + _area(other_N4[..., :2], other_N4[..., 2:]) - shared
    iou = shared / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def _area(low_N2: Tensor, high_N2: Tensor) -> Tensor:
    width, height = (high_N2 - low_N2).clamp(min=0).unbind(-1)
    return width * height


def l1_loss(found_N4: Tensor, true_N4: Tensor, count: Tensor) -> Tensor:
    """Sum of |found - true| over the N boxes (centres) and their four numbers, over `count`.

    Example:
        >>> l1_loss(torch.zeros(1, 4), torch.full((1, 4), 0.5), torch.tensor(2.0)).item()
        1.0
    """
    return F.l1_loss(found_N4, true_N4, reduction="sum") / count


def giou_loss(found_N4: Tensor, true_N4: Tensor, count: Tensor) -> Tensor:
    """Sum of 1 - GIoU over N pairs of boxes (corners), over `count`.

    Example:
        >>> giou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 1, 1]]), torch.tensor(1.0)).item()
        0.0
    """
    return (1 - overlaps(found_N4, true_N4)[1]).sum() / count


def focal_loss(logits_NK: Tensor, classes_N: Tensor, count: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5), summed over everything, over `count`; class K is "no object".

    Args:
        logits_NK: [..., K].
        classes_N: [...] int64, 0 to K.
        count: What it is divided by, usually the number of objects.
        alpha: Weight of a class that is there; 1 - alpha of one that is not.
        gamma: How much what is easily told apart is played down.
    """
    k = logits_NK.shape[-1]
    hot_NK = F.one_hot(classes_N, k + 1)[..., :k].to(logits_NK.dtype)
    total: Tensor = sigmoid_focal_loss(logits_NK, hot_NK, alpha=alpha, gamma=gamma, reduction="sum")
    return total / count


def class_weights(classes_N: Tensor, nothing: int, weight: float) -> Tensor:
    """The weight of each prediction [...] in the cross-entropy: 1, and `weight` where its class is the index `nothing`.

    Example:
        >>> class_weights(torch.tensor([0, 2]), 2, 0.5).tolist()
        [1.0, 0.5]
    """
    return torch.where(classes_N == nothing, weight, 1.0)


def weighted_cross_entropy(logits_NK: Tensor, classes_N: Tensor, weight_N: Tensor, total: Tensor) -> Tensor:
    """Sum of weight * cross-entropy (nats) over `total`, which is the sum of weights, over all processes if there are several."""
    each_N = F.cross_entropy(logits_NK.flatten(0, -2), classes_N.flatten(), reduction="none")
    return (each_N * weight_N.flatten()).sum() / total


def quality_loss(logits_N: Tensor, found_N4: Tensor, true_N4: Tensor, count: Tensor) -> Tensor:
    """Binary cross-entropy of a predicted IoU with the IoU (corners) that was reached, which gets no gradient; over `count`."""
    reached_N = overlaps(found_N4.detach(), true_N4)[0]
    return F.binary_cross_entropy_with_logits(logits_N, reached_N, reduction="sum") / count


def from_distances(places_P2: Tensor, distances_P4: Tensor) -> Tensor:
    """Corners [..., P, 4] of boxes from places (x, y) and distances to the left, top, right and bottom (FCOS, eq. 1).

    Example:
        >>> from_distances(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.25, 0.5, 0.25]])).tolist()
        [[0.0, 0.25, 1.0, 0.75]]
    """
    return torch.cat([places_P2 - distances_P4[..., :2], places_P2 + distances_P4[..., 2:]], dim=-1)


def assign_places(places_P2: Tensor, boxes_N4: Tensor, stride_2: Tensor, radius: float) -> Tensor:
    """Which box each place answers for: indices [P] into the boxes, or -1 for none (FCOS, Tian et al. 2019, section 3.1).

    A place belongs to the smallest box in which it lies, if it is within `radius` strides of that box's centre (centre sampling).
    The place next to a box's centre belongs to it even if the box is too small to hold any, so that only an equal place of a
    smaller box can leave a box without one.

    Args:
        places_P2: x, y.
        boxes_N4: Corners.
        stride_2: Distance of neighbouring places, x and y.
        radius: In strides.

    Example:
        >>> places = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
        >>> assign_places(places, torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([0.5, 1.0]), 1.5).tolist()
        [0, -1]
    """
    if len(boxes_N4) == 0:
        return torch.full((len(places_P2),), -1, dtype=torch.int64, device=places_P2.device)
    centres_N4 = to_centres(boxes_N4)
    centres_N2, sizes_N2 = centres_N4[:, :2], centres_N4[:, 2:]
    away_PN2 = (places_P2[:, None] - centres_N2).abs()
    own_PN = ((away_PN2 < sizes_N2 / 2) & (away_PN2 < radius * stride_2)).all(dim=2)
    nearest_N = (away_PN2 / stride_2).square().sum(dim=2).argmin(dim=0)
    own_PN[nearest_N, torch.arange(len(boxes_N4), device=own_PN.device)] = True
    area_PN = sizes_N2.prod(dim=1).expand_as(own_PN).masked_fill(~own_PN, torch.inf)
    smallest_P, index_P = area_PN.min(dim=1)
    return torch.where(smallest_P.isinf(), -1, index_P)
