"""Losses and matching costs of masks on sampled points (PointRend; Mask2Former, section 3.3), and of where objects' centres are.

Pure functions of tensors; they know no network. Masks are compared at points with coordinates in units of their sides, so that a
predicted mask and a larger true one are never brought to one size. Random points are the same for every mask of a call: a loss does
not depend on the order of its masks, nor, given a generator that is the same on all processes, on the process that holds them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def point_sample(maps_MHW: Tensor, points_MP2: Tensor) -> Tensor:
    """Values [M, P] of maps at points (x, y) in [0, 1], between the four pixel centres around; zero outside the map.

    Example:
        >>> map_1HW = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
        >>> point_sample(map_1HW, torch.tensor([[[0.25, 0.25], [0.5, 0.25], [0.75, 0.75]]])).tolist()
        [[0.0, 0.5, 3.0]]
    """
    sampled_M1P1 = F.grid_sample(maps_MHW[:, None], 2 * points_MP2[:, :, None] - 1, align_corners=False)
    return sampled_M1P1[:, 0, :, 0]


def random_points(points: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Points [1, P, 2] anywhere, in the precision of a tensor and on its device; the generator (None: torch's own) is the CPU's."""
    return torch.rand(1, points, 2, generator=generator).to(like)


@torch.no_grad()
def uncertain_points(
    logits_MHW: Tensor,
    points: int,
    oversample: float = 3.0,
    importance: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points [M, P, 2], most of them where the mask is undecided (PointRend, section 3.1).

    Of `oversample` times P points anywhere, those `importance` times P with the smallest |logit| of each mask; the rest anywhere.
    """
    m, chosen = len(logits_MHW), int(importance * points)
    anywhere_MO2 = random_points(max(int(oversample * points), chosen), logits_MHW, generator).expand(m, -1, -1)
    rest_MR2 = random_points(points - chosen, logits_MHW, generator).expand(m, -1, -1)
    certain_MO = point_sample(logits_MHW, anywhere_MO2).abs()
    least_MC = certain_MO.topk(chosen, dim=1, largest=False).indices
    return torch.cat([anywhere_MO2.gather(1, least_MC[..., None].expand(-1, -1, 2)), rest_MR2], dim=1)


def mask_bce(logits_MP: Tensor, truth_MP: Tensor, masks: Tensor | float) -> Tensor:
    """Binary cross-entropy: mean over the points, sum over the masks, divided by a number of masks; 0 without any."""
    of_points = F.binary_cross_entropy_with_logits(logits_MP, truth_MP, reduction="none")
    return of_points.mean(dim=1).sum() / masks


def mask_dice(logits_MP: Tensor, truth_MP: Tensor, masks: Tensor | float) -> Tensor:
    """1 - (2 sum p y + 1) / (sum p + sum y + 1), p the sigmoid, sums over points; summed and divided as `mask_bce`."""
    chance_MP = logits_MP.sigmoid()
    common_M = 2 * (chance_MP * truth_MP).sum(dim=1)
    both_M = chance_MP.sum(dim=1) + truth_MP.sum(dim=1)
    return (1 - (common_M + 1) / (both_M + 1)).sum() / masks


def pairwise_bce(logits_QP: Tensor, truth_NP: Tensor) -> Tensor:
    """`mask_bce` of every prediction with every object [Q, N]: mean of softplus(x) - x y over the points."""
    outside_Q1 = F.softplus(logits_QP).mean(dim=1, keepdim=True)
    return outside_Q1 - logits_QP @ truth_NP.T / logits_QP.shape[1]


def pairwise_dice(logits_QP: Tensor, truth_NP: Tensor) -> Tensor:
    """`mask_dice` of every prediction with every object [Q, N]."""
    chance_QP = logits_QP.sigmoid()
    both_QN = chance_QP.sum(dim=1)[:, None] + truth_NP.sum(dim=1)[None]
    return 1 - (2 * chance_QP @ truth_NP.T + 1) / (both_QN + 1)


@torch.no_grad()
def mask_cost(
    class_logits_QJ: Tensor,
    logits_QP: Tensor,
    classes_N: Tensor,
    truth_NP: Tensor,
    weights: tuple[float, float, float],
) -> Tensor:
    """What it costs to let each prediction answer for each object [Q, N]; class, cross-entropy and dice, in this order of weights.

    Args:
        class_logits_QJ: Of a softmax; the last is "no object".
        logits_QP: Predicted masks at P points, the same ones as
        truth_NP: the objects' masks there.
        classes_N: The objects' classes.
        weights: Of the three costs.
    """
    by_class_QN = -class_logits_QJ.softmax(dim=1)[:, classes_N]
    by_bce_QN, by_dice_QN = pairwise_bce(logits_QP, truth_NP), pairwise_dice(logits_QP, truth_NP)
    return weights[0] * by_class_QN + weights[1] * by_bce_QN + weights[2] * by_dice_QN


def centre_target(boxes_N4: Tensor, h: int, w: int, spread: float = 0.15) -> Tensor:
    """How much each cell of a map is the centre of an object [h, w] (CenterNet, section 3): 1 in the cell that holds a centre.

    exp(-((x - cx) / (spread bw))^2 / 2 - ((y - cy) / (spread bh))^2 / 2) around it, the largest over the objects, with the
    deviations at least 0.4 cells.

    Args:
        boxes_N4: Centre x, centre y, width, height, in units of the map's sides.
        h, w: Cells.
        spread: Standard deviation in units of the box's sides.
    """
    cells_2 = boxes_N4.new_tensor([w, h])
    place_N2 = torch.minimum((boxes_N4[:, :2] * cells_2).floor().clamp(min=0), cells_2 - 1)
    deviation_N2 = (spread * boxes_N4[:, 2:] * cells_2).clamp(min=0.4)
    x_w, y_h = (torch.arange(n, device=boxes_N4.device, dtype=boxes_N4.dtype) for n in (w, h))
    across_Nw = ((x_w - place_N2[:, :1]) / deviation_N2[:, :1]).square()
    down_Nh = ((y_h - place_N2[:, 1:]) / deviation_N2[:, 1:]).square()
    near_Nhw = (-0.5 * (across_Nw[:, None, :] + down_Nh[:, :, None])).exp()
    return torch.cat([near_Nhw, near_Nhw.new_zeros(1, h, w)]).amax(dim=0)


def centre_loss(logits_Bhw: Tensor, target_Bhw: Tensor, objects: Tensor | float) -> Tensor:
    """The penalty-reduced focal loss (CenterNet, eq. 1), summed over the cells and divided by a number of objects.

    -(1 - p)^2 log p where the target y is 1, else -(1 - y)^4 p^2 log(1 - p), p the sigmoid.
    """
    chance_Bhw = logits_Bhw.sigmoid()
    centre = (1 - chance_Bhw).square() * F.softplus(-logits_Bhw)
    elsewhere = (1 - target_Bhw).pow(4) * chance_Bhw.square() * F.softplus(logits_Bhw)
    return torch.where(target_Bhw == 1, centre, elsewhere).sum() / objects
