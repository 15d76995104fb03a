"""The assignment against every permutation, and the matching of boxes against the one of transformers' DETR."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from keepsight.objectives.boxes import focal_loss
from keepsight.objectives.matching import assign, focal_cost, match_boxes, softmax_cost


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_no_permutation_is_cheaper(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    cost = torch.randn(shape)
    ((rows, columns),) = assign([cost])
    q, n = shape
    few, many, wide = (n, q, cost.T) if q > n else (q, n, cost)
    cheapest = min(
        sum(wide[i, j].item() for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(many), few)
    )
    assert cost[rows, columns].sum().item() == pytest.approx(cheapest, abs=1e-5)
    assert len(rows) == min(shape)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(set(columns.tolist())) == len(columns)


def test_images_are_assigned_by_themselves_and_without_objects_there_is_nothing() -> None:
    rows, columns = assign([torch.zeros(4, 0), torch.eye(2)])[0]
    assert rows.tolist() == columns.tolist() == []
    assert rows.dtype == torch.int64
    assert assign([torch.zeros(4, 0), torch.eye(2)])[1][1].tolist() == [1, 0]


def test_costs_that_are_not_finite_are_chosen_last() -> None:
    cost = torch.tensor([[torch.nan, 5.0], [1.0, 2.0], [torch.inf, 9.0]])
    ((rows, columns),) = assign([cost])
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert len(assign([torch.full((3, 2), torch.nan)])[0][0]) == 2


def test_class_costs() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 5, 3), torch.tensor([[0, 2], [1, 1]])
    torch.testing.assert_close(softmax_cost(logits, classes)[1, 4], -torch.stack([F.softmax(logits[1, 4], 0)[1]] * 2))
    # The focal cost of a class is what the focal loss changes by when that class is the true one, not "no object".
    one = torch.tensor(1.0)
    for column, name in enumerate([0, 2]):
        there = focal_loss(logits[0, :1], torch.tensor([name]), one) - focal_loss(logits[0, :1], torch.tensor([3]), one)
        assert focal_cost(logits, classes)[0, 0, column].item() == pytest.approx(there.item(), abs=1e-5)


def scene(
    queries: int, objects: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    logits, boxes = torch.randn(len(objects), queries, 5), 0.1 + 0.4 * torch.rand(len(objects), queries, 4)
    return logits, boxes, [torch.randint(4, (n,)) for n in objects], [0.1 + 0.4 * torch.rand(n, 4) for n in objects]


@pytest.mark.parametrize("objects", [[3, 0, 5], [1, 1, 1], [8, 2, 3]])
def test_equals_the_matcher_of_transformers(objects: list[int]) -> None:
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    logits, boxes, classes, true = scene(7, objects)
    expected = HungarianMatcher(1.0, 5.0, 2.0)(
        {"logits": logits, "pred_boxes": boxes},
        [{"class_labels": c, "boxes": b} for c, b in zip(classes, true, strict=True)],
    )
    found = match_boxes(logits, boxes, classes, true, (1.0, 5.0, 2.0), focal=False)
    for (rows, columns), (their_rows, their_columns) in zip(found, expected, strict=True):
        assert rows.tolist() == their_rows.tolist()
        assert columns.tolist() == their_columns.tolist()


@pytest.mark.parametrize("focal", [True, False])
def test_what_is_padded_is_never_matched_and_a_batch_is_its_images(focal: bool) -> None:
    logits, boxes, classes, true = scene(6, [1, 4, 0])
    together = match_boxes(logits, boxes, classes, true, (1.0, 5.0, 2.0), focal)
    for i, (rows, columns) in enumerate(together):
        ((own_rows, own_columns),) = match_boxes(
            logits[i : i + 1], boxes[i : i + 1], classes[i : i + 1], true[i : i + 1], (1.0, 5.0, 2.0), focal
        )
        assert rows.tolist() == own_rows.tolist()
        assert columns.tolist() == own_columns.tolist()
        assert len(columns) == len(classes[i])
