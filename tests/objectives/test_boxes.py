"""Box losses against torchvision and plain formulas; what happens to degenerate boxes; which place answers for which box."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision import ops

from keepsight.objectives.boxes import (
    assign_places,
    class_weights,
    focal_loss,
    from_distances,
    giou_loss,
    l1_loss,
    overlaps,
    quality_loss,
    to_centres,
    to_corners,
    weighted_cross_entropy,
)

ONE = torch.tensor(1.0, dtype=torch.float64)


def random_boxes(n: int, seed: int) -> torch.Tensor:
    """Corners [n, 4], float64."""
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low, low + 0.05 + size], dim=1)


def test_conversions_equal_torchvision_and_undo_each_other() -> None:
    corners = random_boxes(20, 0)
    centres = to_centres(corners)
    torch.testing.assert_close(centres, ops.box_convert(corners, "xyxy", "cxcywh"))
    torch.testing.assert_close(to_corners(centres), corners)


def test_overlaps_equal_torchvision_pair_by_pair() -> None:
    one, other = random_boxes(15, 1), random_boxes(9, 2)
    iou, giou = overlaps(one[:, None], other[None])
    torch.testing.assert_close(iou, ops.box_iou(one, other))
    torch.testing.assert_close(giou, ops.generalized_box_iou(one, other))
    assert (giou < 0).any(), "some pairs must be apart for this to test anything"


@pytest.mark.parametrize("other", [[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.5, 0.7]])
def test_boxes_without_area_give_finite_losses_and_gradients(other: list[float]) -> None:
    box = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    loss = giou_loss(box, torch.tensor([other]), torch.tensor(1.0))
    loss.backward()
    assert loss.isfinite()
    assert box.grad is not None
    assert box.grad.isfinite().all()


def test_losses_are_sums_over_the_count() -> None:
    one, other, count = random_boxes(6, 3), random_boxes(6, 4), torch.tensor(4.0)
    torch.testing.assert_close(l1_loss(one, other, count), (one - other).abs().sum() / 4)
    expected = ops.generalized_box_iou_loss(one, other, reduction="sum", eps=0.0) / 4
    torch.testing.assert_close(giou_loss(one, other, count), expected)


def test_focal_loss_equals_its_formula_at_both_ends_of_the_classes() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.5, 0.7]])
    expected = 0.0
    for row, true in zip(logits.tolist(), [0, 1, 2], strict=True):  # 2 is "no object"
        for k, logit in enumerate(row):
            chance = 1 / (1 + math.exp(-logit))
            right, weight = (chance, 0.25) if k == true else (1 - chance, 0.75)
            expected -= weight * (1 - right) ** 2 * math.log(right)
    found = focal_loss(logits, torch.tensor([0, 1, 2]), torch.tensor(2.0))
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)


def test_weighted_cross_entropy_equals_torch_with_a_weight_a_class() -> None:
    logits, classes = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    weight = class_weights(classes, 3, 0.1)
    expected = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), torch.tensor([1.0, 1.0, 1.0, 0.1]))
    torch.testing.assert_close(weighted_cross_entropy(logits, classes, weight, weight.sum()), expected)


def test_quality_learns_the_iou_and_moves_no_box() -> None:
    logits = torch.zeros(2, requires_grad=True)
    found = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]], requires_grad=True)
    true = torch.tensor([[0.0, 0, 1, 0.5], [0, 0, 1, 1]])
    quality_loss(logits, found, true, torch.tensor(1.0)).backward()
    assert found.grad is None
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, -0.5]))  # sigmoid(0) - IoU of 0.5 and 1


@pytest.mark.parametrize("loss", ["l1", "giou", "focal", "cross_entropy", "quality"])
def test_gradients(loss: str) -> None:
    torch.manual_seed(0)
    one, other = random_boxes(4, 5), random_boxes(4, 6)
    logits, classes = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    of, at = {
        "l1": (lambda x: l1_loss(x, other, ONE), one),
        "giou": (lambda x: giou_loss(x, other, ONE), one),
        "focal": (lambda x: focal_loss(x, classes, ONE), logits[:, :2]),
        "cross_entropy": (lambda x: weighted_cross_entropy(x, classes, class_weights(classes, 2, 0.1), ONE), logits),
        "quality": (lambda x: quality_loss(x, one, other, ONE), logits[:, 0]),
    }[loss]
    assert torch.autograd.gradcheck(of, at.clone().requires_grad_())


def grid(side: int) -> torch.Tensor:
    """Places (x, y) row by row."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack([at.repeat(side), at.repeat_interleave(side)], dim=1)


def test_places_within_the_radius_of_the_centre_answer_for_a_box() -> None:
    box, stride = torch.tensor([[0.0, 0.0, 0.8, 0.8]]), torch.tensor([0.1, 0.1])
    own = assign_places(grid(10), box, stride, 1.0).view(10, 10) == 0
    assert own.nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    everywhere = assign_places(grid(10), box, stride, 100.0).view(10, 10) == 0
    assert everywhere[:8, :8].all()
    assert everywhere.sum() == 64


def test_a_place_in_two_boxes_answers_for_the_smaller_one() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.6, 0.6]])
    found = assign_places(grid(10), boxes, torch.tensor([0.1, 0.1]), 100.0).view(10, 10)
    assert (found[4:6, 4:6] == 1).all()
    assert (found == 0).sum() == 96


def test_a_box_too_small_to_hold_a_place_has_the_nearest_one() -> None:
    found = assign_places(grid(4), torch.tensor([[0.9, 0.01, 0.91, 0.02]]), torch.tensor([0.25, 0.25]), 1.5)
    assert found.tolist() == [-1, -1, -1, 0] + [-1] * 12


def test_without_boxes_no_place_answers() -> None:
    assert (assign_places(grid(3), torch.zeros(0, 4), torch.tensor([0.3, 0.3]), 1.5) == -1).all()


def test_distances_undo() -> None:
    places, box = grid(2), torch.tensor([0.1, 0.2, 0.9, 0.8])
    distances = torch.cat([places - box[:2], box[2:] - places], dim=1)
    torch.testing.assert_close(from_distances(places, distances), box.expand(4, 4))
