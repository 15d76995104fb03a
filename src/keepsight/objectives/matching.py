"""One-to-one assignment of predictions to objects (Hungarian method). Pure functions; knows no network and no file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from keepsight.objectives.boxes import overlaps, to_corners

Pairs = list[tuple[Tensor, Tensor]]
"""Of each image: predictions [M] and the objects [M] that they answer for, int64."""

_WORST = 1e6


def assign(costs: Sequence[Tensor]) -> Pairs:
    """The cheapest one-to-one assignment of each image: cost matrices [Q, N] -> (rows [M], columns [M]), M = min(Q, N).

    Rows are in ascending order. The matrices may be views of one tensor; gradients are not followed. A cost that is not finite
    counts as a very high one, so that a diverged loss is reported as such and not as a failed assignment.

    Example:
        >>> rows, columns = assign([torch.tensor([[3.0, 1.0], [0.0, 2.0], [9.0, 9.0]])])[0]
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [1, 0])
    """
    found: Pairs = []
    for cost in costs:
        finite = cost.detach().float().nan_to_num(_WORST, _WORST, -_WORST).cpu().numpy()
        rows, columns = linear_sum_assignment(finite)
        found.append(
            (
                torch.as_tensor(rows, dtype=torch.int64, device=cost.device),
                torch.as_tensor(columns, dtype=torch.int64, device=cost.device),
            )
        )
    return found


def focal_cost(logits_BQK: Tensor, classes_BN: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What it costs to call each object by its class under the sigmoid focal loss [B, Q, N] (Deformable DETR's matcher)."""
    chance = logits_BQK.sigmoid()
    present = alpha * (1 - chance) ** gamma * -(chance + 1e-8).log()
    absent = (1 - alpha) * chance**gamma * -(1 - chance + 1e-8).log()
    return _of_classes(present - absent, classes_BN)


def softmax_cost(logits_BQK: Tensor, classes_BN: Tensor) -> Tensor:
    """Minus the softmax probability of each object's class [B, Q, N] (DETR, eq. 1)."""
    return _of_classes(-logits_BQK.softmax(dim=2), classes_BN)


def _of_classes(values_BQK: Tensor, classes_BN: Tensor) -> Tensor:
    return values_BQK.gather(2, classes_BN[:, None].expand(-1, values_BQK.shape[1], -1))


@torch.no_grad()
def match_boxes(
    logits_BQK: Tensor,
    boxes_BQ4: Tensor,
    classes: Sequence[Tensor],
    boxes: Sequence[Tensor],
    weights: tuple[float, float, float],
    focal: bool,
) -> Pairs:
    """Match the predictions of a batch to its objects by class, L1 and generalised IoU (DETR, section 3.1).

    Args:
        logits_BQK: Under `focal` one per class; else a softmax's, with one more for "no object" last.
        boxes_BQ4: Centre x, centre y, width, height.
        classes: Of each image's objects [N].
        boxes: Of each image's objects [N, 4], as `boxes_BQ4`.
        weights: Of the class, L1 and generalised IoU costs.
        focal: Whether classes are scored by the focal loss or by a softmax.
    """
    # One padded batch instead of one small cost an image; what is padded is cut off again before the assignment.
    classes_BN = pad_sequence(list(classes), batch_first=True)
    boxes_BN4 = pad_sequence(list(boxes), batch_first=True).to(boxes_BQ4.dtype)
    by_class = (focal_cost if focal else softmax_cost)(logits_BQK, classes_BN)
    by_distance = torch.cdist(boxes_BQ4, boxes_BN4, p=1)
    _, giou = overlaps(to_corners(boxes_BQ4)[:, :, None], to_corners(boxes_BN4)[:, None])
    cost_BQN = (weights[0] * by_class + weights[1] * by_distance - weights[2] * giou).cpu()
    device = logits_BQK.device
    pairs = assign([cost_QN[:, : len(own)] for cost_QN, own in zip(cost_BQN, classes, strict=True)])
    return [(rows.to(device), columns.to(device)) for rows, columns in pairs]
