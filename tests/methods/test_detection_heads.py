"""The detection heads: losses against transformers' DETR, what they do not depend on, two processes, answers, and learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detection_parts import CHANNELS, CLASSES, finds_all, painted
from keepsight.core import Target, TaskHead
from keepsight.heads.attention import LayerConfig
from keepsight.heads.dense import DenseNetConfig
from keepsight.heads.detection import DetrNetConfig
from keepsight.methods.denoising import add_noise
from keepsight.methods.detection import PAPER_DETR, DenseConfig, DenseHead, DetrConfig, DetrHead
from launching import launch

LAYER = LayerConfig(heads=2, feedforward=16)
NET = DetrNetConfig(width=16, decoder_width=16, queries=6, layer=LAYER)
LEARNED = NET.model_copy(update={"proposed": False, "drawn": False, "glimpse": 0, "background": True})
# Noise of no size, so that losses can be compared; with a background, without, and as in the paper.
DETR = DetrConfig(net=NET, box_noise=0.0, class_noise=0.0)
SOFTMAX = DetrConfig(net=NET.model_copy(update={"background": True}), box_noise=0.0, class_noise=0.0)
PLAIN = DetrConfig(net=LEARNED, denoising=0)
DENSE = DenseConfig(net=DenseNetConfig(width=8, groups=2, convolutions=1))
CONFIGS = {"detr": DETR, "softmax": SOFTMAX, "plain": PLAIN, "dense": DENSE}


def head(config: DetrConfig | DenseConfig) -> DetrHead | DenseHead:
    """Random weights, those that begin at zero included."""
    torch.manual_seed(0)
    kind = DetrHead if isinstance(config, DetrConfig) else DenseHead
    made = kind(CHANNELS, CLASSES, config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


every_head = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def gradients(made: TaskHead, maps: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
    """Of the sum of the losses, by weight."""
    made.zero_grad()
    sum(made(maps, targets).values()).backward()
    return {name: weight.grad.clone() for name, weight in made.named_parameters() if weight.grad is not None}


def scalars(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("config", [SOFTMAX, PLAIN], ids=["proposed", "learned"])
def test_losses_equal_those_of_transformers(config: DetrConfig) -> None:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    maps, targets = painted()
    made = head(config).eval()
    out = made.net(maps)
    theirs = ImageLoss(HungarianMatcher(1.0, 5.0, 2.0), CLASSES, 0.1, ["labels", "boxes"])
    layers = [{"logits": c, "pred_boxes": b} for c, b in zip(out.logits, out.boxes, strict=True)]
    if config.net.proposed:
        layers.append({"logits": out.proposal_logits, "pred_boxes": out.proposal_boxes})
    expected = theirs(
        {**layers[0], "auxiliary_outputs": layers[1:]},
        [{"class_labels": target.classes, "boxes": target.boxes} for target in targets],
    )
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    total = sum(value * weight for name, value in expected.items() for key, weight in weights.items() if key in name)
    torch.testing.assert_close(sum(made.losses(maps, targets).values()), total)


@every_head
def test_neither_the_order_of_images_nor_of_objects_matters(config: DetrConfig | DenseConfig) -> None:
    maps, targets = painted(6)
    made = head(config)
    plain = scalars(made.losses(maps, targets))
    order = [4, 2, 5, 0, 1, 3]
    permuted = tuple(Target(targets[i].boxes.flip(0), targets[i].classes.flip(0)) for i in order)
    assert scalars(made.losses(maps[order], permuted)) == pytest.approx(plain, rel=1e-4)
    wrong = tuple(targets[i] for i in order)
    assert scalars(made.losses(maps, wrong)) != pytest.approx(plain, rel=1e-2), "every image has its own targets"


@every_head
@pytest.mark.parametrize("with_objects", [0, 1])
def test_images_without_objects_give_finite_losses_and_all_gradients(
    config: DetrConfig | DenseConfig, with_objects: int
) -> None:
    maps, targets = painted(3)
    targets = targets[:with_objects] + (Target(),) * (3 - with_objects)
    made, maps = head(config), maps.requires_grad_()
    losses = made(maps, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert (maps.grad.flatten(1).abs().sum(dim=1) > 0).all(), "what is empty teaches as well"
    for name, weight in made.named_parameters():
        assert weight.grad is not None, f"{name} takes no part, on which several processes would wait"
        assert weight.grad.isfinite().all()


@every_head
def test_more_objects_than_queries_or_one_over_another_are_no_error(config: DetrConfig | DenseConfig) -> None:
    boxes, classes = torch.tensor([0.5, 0.5, 0.3, 0.3]).repeat(9, 1), torch.arange(9) % CLASSES
    losses = head(config)(painted(1)[0], (Target(boxes, classes),))
    assert all(loss.isfinite() for loss in losses.values())


@every_head
def test_a_batch_has_the_mean_gradient_of_its_halves_where_these_have_as_many_objects(
    config: DetrConfig | DenseConfig,
) -> None:
    maps, targets = painted(6)
    # Both halves have the same targets, and so the same counts, but other maps.
    targets = targets[:3] * 2
    made = head(config)
    whole = gradients(made, maps, targets)
    one, other = gradients(made, maps[:3], targets[:3]), gradients(made, maps[3:], targets[3:])
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, (one[name] + other[name]) / 2, atol=1e-5, rtol=1e-3)


SHARES = """
import sys, torch
from torch import distributed
sys.path.insert(0, sys.argv[2])
from test_detection_heads import CONFIGS, gradients, head
from detection_parts import painted
distributed.init_process_group("gloo")
maps, targets = painted(6)
targets = targets[:3] + targets[:1] * 3
mine = slice(0, 3) if distributed.get_rank() == 0 else slice(3, 6)
found = {}
for name, config in CONFIGS.items():
    found[name] = gradients(head(config), maps[mine], targets[mine])
    for gradient in found[name].values():
        distributed.all_reduce(gradient)
        gradient /= 2
if distributed.get_rank() == 0:
    torch.save(found, sys.argv[1])
"""


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    maps, targets = painted(6)
    targets = targets[:3] + targets[:1] * 3  # six objects on one process, three on the other
    launch(SHARES, tmp_path / "two", 2, str(tmp_path / "gradients.pt"), str(Path(__file__).parent))
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, config in CONFIGS.items():
        for weight, expected in gradients(head(config), maps, targets).items():
            torch.testing.assert_close(found[name][weight], expected, atol=1e-5, rtol=1e-3, msg=f"{name}: {weight}")


@every_head
def test_the_shape_rebuilds_the_head(config: DetrConfig | DenseConfig) -> None:
    made = head(config).eval()
    shape: dict[str, Any] = json.loads(json.dumps(made.shape()))
    rebuilt = type(made)(**shape).eval()
    rebuilt.load_state_dict(made.state_dict())
    assert rebuilt.config == config
    maps, _ = painted(2)
    for one, other in zip(made.answers(maps), rebuilt.answers(maps), strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.scores, other.scores)


@every_head
def test_answers_are_ordered_and_the_same_whatever_else_is_in_the_batch(config: DetrConfig | DenseConfig) -> None:
    made, (maps, _) = head(config).eval(), painted(4)
    together = made.answers(maps)
    for i, answer in enumerate(together):
        (alone,) = made.answers(maps[i : i + 1])
        torch.testing.assert_close(answer.scores, alone.scores)
        torch.testing.assert_close(answer.boxes[:5], alone.boxes[:5])
        assert answer.classes[:5].tolist() == alone.classes[:5].tolist()
        assert 0 < len(answer.scores) <= 100
        assert answer.scores.tolist() == sorted(answer.scores.tolist(), reverse=True)
        assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
        assert ((answer.boxes >= 0) & (answer.boxes <= 1)).all()
        assert (answer.boxes[:, 2:] > answer.boxes[:, :2]).all()
        assert ((answer.classes >= 0) & (answer.classes < CLASSES)).all()
        assert not answer.scores.requires_grad


def test_no_object_is_never_answered() -> None:
    made = head(SOFTMAX).eval()
    with torch.no_grad():
        made.net.judge.classes.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 50.0]))
    answer = made.answers(painted(1)[0])[0]
    assert answer.classes.max() < CLASSES
    assert answer.scores.max() < 1e-6


def test_dropout_is_of_training_alone() -> None:
    net = LEARNED.model_copy(update={"layer": LAYER.model_copy(update={"dropout": 0.5})})
    made, (maps, targets) = head(PLAIN.model_copy(update={"net": net})), painted(2)
    assert scalars(made.losses(maps, targets)) != scalars(made.losses(maps, targets))
    made.eval()
    assert scalars(made.losses(maps, targets)) == scalars(made.losses(maps, targets))


def test_denoising_draws_from_the_global_generator_and_not_in_evaluation_mode() -> None:
    made, (maps, targets) = head(DetrConfig(net=NET)), painted(2)
    torch.manual_seed(1)
    first, second = scalars(made.losses(maps, targets)), scalars(made.losses(maps, targets))
    torch.manual_seed(1)
    assert scalars(made.losses(maps, targets)) == first
    assert {name for name in first if first[name] != second[name]} == {
        "denoising_classification",
        "denoising_l1",
        "denoising_giou",
    }
    made.eval()
    state = torch.get_rng_state()
    assert not any(name.startswith("denoising") for name in made.losses(maps, targets))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_stays_within_its_bounds_and_keeps_the_truth() -> None:
    torch.manual_seed(0)
    targets = (Target(torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(2, 1), torch.tensor([0, 3])), Target())
    noised = add_noise(targets, CLASSES, 50, 0.4, 0.5)
    queries = noised.queries
    assert queries.boxes.shape == (2, 100, 4)
    assert queries.present[0].all()
    assert not queries.present[1].any()
    moved = queries.boxes[0] - torch.tensor([0.5, 0.5, 0.2, 0.4])
    assert (moved.abs() <= 0.4 * torch.tensor([0.1, 0.2, 0.2, 0.4]) + 1e-6).all()
    assert (moved.abs().amax(dim=0) > 0.3 * torch.tensor([0.1, 0.2, 0.2, 0.4])).all()
    assert noised.classes[0].tolist() == [0, 3] * 50
    kept = (queries.classes[0] == noised.classes[0]).float().mean().item()
    assert kept == pytest.approx(0.5 + 0.5 / CLASSES, abs=0.15)
    many = Target(torch.rand(150, 4), torch.zeros(150, dtype=torch.int64))
    assert add_noise((many,), CLASSES, 5, 0.4, 0.2).queries.groups == 1


def test_noise_is_a_function_of_the_images_draw() -> None:
    """Neither the order of the images nor the state of torch's generator changes it."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    one, two = (
        Target(boxes, torch.tensor([1]), draw=(5, 0)),
        Target(boxes.repeat(2, 1), torch.tensor([0, 3]), draw=(5, 1)),
    )
    plain, swapped = (add_noise(each, CLASSES, 3, 0.4, 0.5).queries for each in ((one, two), (two, one)))
    assert torch.equal(plain.boxes.flip(0), swapped.boxes)
    assert torch.equal(plain.classes.flip(0), swapped.classes)
    assert not torch.equal(plain.boxes[0, 0], plain.boxes[1, 0])
    later = add_noise((Target(boxes, torch.tensor([1]), draw=(6, 0)), two), CLASSES, 3, 0.4, 0.5).queries
    assert not torch.equal(later.boxes[0], plain.boxes[0])
    assert torch.equal(later.boxes[1], plain.boxes[1])


def test_denoising_needs_queries_with_boxes() -> None:
    with pytest.raises(ValueError, match="denoising needs queries with boxes"):
        DetrConfig(net=LEARNED)


def test_the_papers_head_is_of_the_papers_size() -> None:
    with torch.device("meta"):
        made = DetrHead(1408, 80, PAPER_DETR)
    assert made.net.query_places.shape == (100, 256)
    assert len(made.net.encoder) == len(made.net.decoder) == 6
    assert made.net.judge.classes.out_features == 81
    assert made.net.task_token is not None


@every_head
def test_queries_on_one_object_leave_the_surest_to_answer(config: DetrConfig | DenseConfig) -> None:
    maps = torch.randn(3, CHANNELS, 6, 5, generator=torch.Generator().manual_seed(1))
    every, few = (head(config.model_copy(update={"overlap": overlap})).eval() for overlap in (1.0, 0.05))
    for loose, tight in zip(every.answers(maps), few.answers(maps), strict=True):
        apart = tight.boxes.unique(dim=0)
        assert len(apart) < len(loose.boxes.unique(dim=0))
        assert box_iou(apart, apart).fill_diagonal_(0).max() <= 0.05
        assert tight.scores[0] == loose.scores[0]
        left = {(*box, name) for box, name in zip(tight.boxes.tolist(), tight.classes.tolist(), strict=True)}
        assert len(left) == len(apart) * CLASSES  # a query that answers does so with all of its classes


def test_a_dense_head_answers_one_box_where_many_places_agree() -> None:
    made, (maps, _) = head(DENSE).eval(), painted(1)
    for answer in made.answers(maps):
        for name in range(CLASSES):
            boxes = answer.boxes[answer.classes == name]
            if len(boxes) == 0:
                continue
            assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= DENSE.overlap


QUICK = LayerConfig(heads=4, feedforward=64)
LEARNS = {
    "detr": DetrConfig(net=DetrNetConfig(width=64, decoder_width=64, queries=6, layer=QUICK)),
    "softmax": DetrConfig(net=DetrNetConfig(width=64, decoder_width=64, queries=6, layer=QUICK, background=True)),
    "dense": DenseConfig(net=DenseNetConfig(width=32, convolutions=1, groups=4)),
}


@pytest.mark.parametrize("config", LEARNS.values(), ids=LEARNS)
def test_learns_eight_images_with_classes_at_both_ends(config: DetrConfig | DenseConfig) -> None:
    maps, targets = painted(8)
    assert {0, CLASSES - 1} <= {int(name) for target in targets for name in target.classes}
    torch.manual_seed(0)
    made = (DetrHead if isinstance(config, DetrConfig) else DenseHead)(CHANNELS, CLASSES, config)
    assert not finds_all(made.eval().answers(maps), targets)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    for step in range(1, 301):
        made.train()
        optimizer.zero_grad()
        sum(made(maps, targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 and finds_all(made.eval().answers(maps), targets):
            return
    pytest.fail(f"not learnt in 300 steps: {[(each.boxes[:3], each.scores[:3]) for each in made.answers(maps)]}")
