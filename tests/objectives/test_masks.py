"""Point-sampled mask losses: against transformers' Mask2Former on the same points, gradients, and what holds on a full grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former import modeling_mask2former as reference

from keepsight.heads.position import cell_centres
from keepsight.objectives import masks
from keepsight.objectives.matching import assign


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor]:
    """Logits [5, 12, 12] and true masks [5, 30, 30]."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 12, 12, generator=generator)
    return logits, (torch.rand(5, 30, 30, generator=generator) > 0.6).float()


def test_points_are_sampled_as_by_transformers(tensors: tuple[Tensor, Tensor]) -> None:
    points = torch.rand(5, 40, 2) * 1.2 - 0.1  # some outside
    expected = reference.sample_point(tensors[0][:, None], points, align_corners=False).squeeze(1)
    torch.testing.assert_close(masks.point_sample(tensors[0], points), expected)


def test_losses_equal_transformers(tensors: tuple[Tensor, Tensor]) -> None:
    points = torch.rand(5, 40, 2)
    x, y = masks.point_sample(tensors[0], points), masks.point_sample(tensors[1], points)
    torch.testing.assert_close(masks.mask_bce(x, y, 3.0), reference.sigmoid_cross_entropy_loss(x, y, 3))
    torch.testing.assert_close(masks.mask_dice(x, y, 3.0), reference.dice_loss(x, y, 3))


def test_the_matching_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, predicted = torch.randn(7, 5, generator=generator), 2 * torch.randn(7, 12, 12, generator=generator)
    labels, truth = torch.tensor([3, 0, 3]), (torch.rand(3, 30, 30, generator=generator) > 0.5).float()
    points = torch.rand(1, 64, 2, generator=generator)
    seen: list[Tensor] = []
    theirs = reference.Mask2FormerHungarianMatcher(2.0, 5.0, 5.0, num_points=64)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: points)
        patch.setattr(
            reference,
            "linear_sum_assignment",
            lambda cost: (seen.append(cost), ([0], [0]))[1],
        )
        theirs(predicted[None], logits[None], [truth], [labels])
    at_points = masks.point_sample(truth, points.expand(3, -1, -1))
    x = masks.point_sample(predicted, points.expand(7, -1, -1))
    cost = masks.mask_cost(logits, x, labels, at_points, (2.0, 5.0, 5.0))
    torch.testing.assert_close(cost, seen[0])
    rows, columns = assign([cost])[0]
    assert len(set(rows.tolist())) == 3
    assert sorted(columns.tolist()) == [0, 1, 2]


def test_pairs_are_the_losses_of_each_alone(tensors: tuple[Tensor, Tensor]) -> None:
    points = torch.rand(1, 50, 2)
    x, y = (masks.point_sample(each, points.expand(5, -1, -1)) for each in tensors)
    for pairwise, alone in ((masks.pairwise_bce, masks.mask_bce), (masks.pairwise_dice, masks.mask_dice)):
        expected = torch.stack([torch.stack([alone(a[None], b[None], 1.0) for b in y[:3]]) for a in x])
        torch.testing.assert_close(pairwise(x, y[:3]), expected)


def test_a_full_grid_of_points_gives_the_plain_losses(tensors: tuple[Tensor, Tensor]) -> None:
    logits, truth = tensors[0], (tensors[0] + torch.randn_like(tensors[0]) > 0).float()
    grid = cell_centres(12, 12).expand(5, -1, -1)
    x, y = masks.point_sample(logits, grid), masks.point_sample(truth, grid)
    torch.testing.assert_close(masks.mask_bce(x, y, 5.0), F.binary_cross_entropy_with_logits(logits, truth))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
    torch.testing.assert_close(masks.mask_dice(x, y, 5.0), dice.mean())


def test_uncertain_points_lie_where_the_mask_is_undecided() -> None:
    ramp = (torch.arange(16) + 0.5) / 16
    logits = torch.stack([20 * (ramp - 0.5).expand(16, 16), 20 * (0.25 - ramp[:, None]).expand(16, 16)])
    torch.manual_seed(0)
    points = masks.uncertain_points(logits, 100)
    assert points.shape == (2, 100, 2)
    assert 0 <= points.min() <= points.max() <= 1
    # A quarter of the candidates is kept: those within about 1/8 of where the logit is 0, and a few at the border, where values
    # fade to the zero outside. Of points anywhere, 30 would be as near.
    assert ((points[0, :75, 0] - 0.5).abs() < 0.2).sum() >= 70
    assert ((points[1, :75, 1] - 0.25).abs() < 0.2).sum() >= 70
    anywhere = points[0, 75:, 0]
    assert anywhere.min() < 0.2
    assert anywhere.max() > 0.8
    # The same candidates for every mask, whatever the order of the masks.
    torch.manual_seed(0)
    torch.testing.assert_close(masks.uncertain_points(logits.flip(0), 100).flip(0), points)
    torch.manual_seed(0)
    torch.testing.assert_close(masks.uncertain_points(logits[:1], 100), points[:1])


@pytest.mark.parametrize("loss", [masks.mask_bce, masks.mask_dice])
def test_gradients_and_no_masks(loss: object) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    points = torch.rand(2, 6, 2, dtype=torch.float64, generator=generator)
    truth = torch.rand(2, 6, dtype=torch.float64, generator=generator).round()
    assert torch.autograd.gradcheck(lambda x: loss(masks.point_sample(x, points), truth, 2.0), (logits,))  # type: ignore[operator]
    none = loss(masks.point_sample(logits[:0], points[:0]), truth[:0], 1.0)  # type: ignore[operator]
    none.backward()
    assert none.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_centre_of_an_object_is_one_cell() -> None:
    boxes = torch.tensor([[0.3, 0.6, 0.4, 0.2], [1.0, 0.0, 0.1, 0.1]])  # one whose centre is on the corner
    target = masks.centre_target(boxes, 4, 8)
    assert (target == 1).nonzero().tolist() == [[0, 7], [2, 2]]
    # exp(-(1 / (0.15 * 0.4 * 8))^2 / 2) one cell across; exp(-(1 / 0.4)^2 / 2) one cell down, where the least deviation holds
    assert target[2, 3].item() == pytest.approx(0.1142, abs=1e-4)
    assert target[1, 2].item() == pytest.approx(0.0439, abs=1e-4)
    assert not masks.centre_target(boxes[:0], 4, 8).any()


def test_the_loss_of_centres_equals_its_formula_and_has_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.3, 0.6, 0.4, 0.2], [0.9, 0.1, 0.3, 0.3]], dtype=torch.float64)
    target = torch.stack([masks.centre_target(boxes[:1], 3, 4), masks.centre_target(boxes, 3, 4)])
    p = logits.sigmoid()
    formula = [
        (1 - p[i]) ** 2 * p[i].log() if y == 1 else (1 - y) ** 4 * p[i] ** 2 * (1 - p[i]).log()
        for i, y in ((tuple(at), target[tuple(at)]) for at in torch.ones(2, 3, 4).nonzero().tolist())
    ]
    torch.testing.assert_close(masks.centre_loss(logits, target, 3.0), -torch.stack(formula).sum() / 3)
    assert torch.autograd.gradcheck(lambda x: masks.centre_loss(x, target, 3.0), (logits,))
