"""The mask head: what its losses depend on, its labels at both ends, its answers, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keepsight.core import Answer, Objects, SceneDataset, Target
from keepsight.data.arrays import ArrayImages
from keepsight.data.masks import encode_mask
from keepsight.evaluate.coco import APs, Located, average_precision
from keepsight.heads.attention import LayerConfig
from keepsight.heads.segmentation import MaskNetConfig, MaskOutput
from keepsight.methods.segmentation import PAPER, MaskHead, SegmentationConfig, mask_boxes
from launching import launch
from mask_scenes import CHANNELS, CLASSES, SIZE, gradients, painted

LAYER = LayerConfig(heads=4, feedforward=64)
NET = MaskNetConfig(width=32, mask_width=16, queries=8, decoder_layers=1, encoder=LAYER, decoder=LAYER)
SMALL = SegmentationConfig(net=NET, points=128)


def head(config: SegmentationConfig = SMALL) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(CHANNELS, CLASSES, SIZE, config)


def losses(of: MaskHead, maps: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return of(maps, targets)


def test_the_order_of_the_batch_changes_nothing() -> None:
    maps, targets = painted((2, 0, 1, 3))
    order = [2, 0, 3, 1]
    one, other = losses(head(), maps, targets), losses(head(), maps[order], tuple(targets[i] for i in order))
    assert list(one) == ["class", "bce", "dice", "auxiliary", "centre"]
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["class", "bce", "dice", "auxiliary", "centre"])
def test_every_image_counts(name: str) -> None:
    """The published code read the masks of the first image only."""
    maps, targets = painted((1, 2, 1))
    maps.requires_grad_()
    losses(head(), maps, targets)[name].backward()
    assert maps.grad is not None
    assert (maps.grad.abs().amax(dim=(1, 2, 3)) > 1e-7).all()
    if name in ("bce", "dice"):
        for image in range(3):
            moved = list(targets)
            moved[image] = Target(targets[image].boxes, targets[image].classes, ~targets[image].masks)
            assert losses(head(), maps, tuple(moved))[name] != losses(head(), maps, targets)[name]


def test_points_are_a_function_of_the_step() -> None:
    maps, targets = painted((2, 0, 1))
    steps = [tuple(replace(t, draw=(number, place)) for place, t in enumerate(targets)) for number in (4, 4, 5)]
    of = head()
    first, again, later = (of(maps, each) for each in steps)
    assert first == again
    assert first["bce"] != later["bce"]


def test_images_without_objects() -> None:
    maps, targets = painted((0, 0))
    for each in (targets, (Target(), Target())):
        of = head()
        found = losses(of, maps, each)
        assert all(value.isfinite() for value in found.values())
        sum(found.values(), torch.zeros(())).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in of.parameters())
        assert found["class"] > 0
        assert found["bce"] == found["dice"] == 0


class Fixed(nn.Module):
    """A network that says what it was told."""

    def __init__(self, logits: Tensor, masks: Tensor) -> None:
        super().__init__()
        self.out = MaskOutput(logits[None], masks[None], torch.empty(0))

    def forward(self, _: Tensor) -> MaskOutput:
        return self.out


def _told(classes: tuple[int, ...]) -> tuple[MaskHead, tuple[Target, ...]]:
    """A head whose last queries see the objects of an image without doubt, in these classes; the others see nothing."""
    of = head(SMALL.model_copy(update={"net": NET.model_copy(update={"proposed": False})}))
    targets = painted((3,))[1]
    logits, masks = torch.full((1, 8, CLASSES + 1), -20.0), torch.full((1, 8, SIZE, SIZE), -20.0)
    logits[:, :5, CLASSES] = 20.0
    for query, (label, mask) in enumerate(zip(classes, targets[0].masks, strict=True), start=5):
        logits[0, query, label] = 20.0
        masks[0, query][mask] = 20.0
    of.net = Fixed(logits, masks)  # type: ignore[assignment]
    return of, (Target(targets[0].boxes, torch.tensor(classes), targets[0].masks),)


@pytest.mark.parametrize("classes", [(0, 1, CLASSES - 1), (CLASSES - 1, 0, 0)])
def test_labels_at_both_ends(classes: tuple[int, ...]) -> None:
    """The first and the last class, and 'no object' behind them: the right one costs nothing, in the loss and in the answer."""
    of, targets = _told(classes)
    maps = torch.zeros(1, CHANNELS, 6, 6)
    found = losses(of, maps, targets)
    assert found["class"] < 1e-6
    wrong = tuple(Target(t.boxes, (t.classes + 1) % CLASSES, t.masks) for t in targets)
    # Each of 3 answers is wrong by 40 nats; weights are 3 and 0.1 for each of the 5 others.
    told_wrong = losses(of, maps, wrong)
    assert told_wrong["class"].item() == pytest.approx(2 * 120 / 3.5, rel=1e-3)
    assert told_wrong["bce"] == found["bce"]  # masks alone decide here which query answers for which object
    answer = of.answers(maps)[0]
    assert answer.classes[:3].sort().values.tolist() == sorted(classes)
    assert (answer.scores[:3] > 0.999).all()
    assert (answer.scores[3:] < 1e-6).all()
    for label, mask in zip(classes, targets[0].masks, strict=True):
        row = next(i for i in range(3) if (answer.masks[i] == mask).all())
        assert answer.classes[row] == label
        y, x = mask.nonzero(as_tuple=True)
        expected = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]) / SIZE
        torch.testing.assert_close(answer.boxes[row], expected)


def test_masks_without_pixels_are_no_answers() -> None:
    of, _ = _told((0, 1, 2))
    answer = of.answers(torch.zeros(1, CHANNELS, 6, 6))[0]
    assert len(answer.scores) == 3 * CLASSES  # three queries have a mask
    assert answer.masks.any(dim=(1, 2)).all()
    assert (answer.scores.diff() <= 0).all()
    of.config = SegmentationConfig(net=of.config.net, most=2)
    assert len(of.answers(torch.zeros(1, CHANNELS, 6, 6))[0].scores) == 2
    assert mask_boxes(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0.0] * 4]


def test_an_answer_does_not_depend_on_its_batch_and_shape_rebuilds() -> None:
    maps, _ = painted((2, 1, 3))
    of = head().eval()
    again = MaskHead(**json.loads(json.dumps(of.shape()))).eval()
    again.load_state_dict(of.state_dict())
    assert again.config == of.config
    for alone, together in zip(again.answers(maps[1:2]), of.answers(maps)[1:2], strict=True):
        torch.testing.assert_close(alone.scores, together.scores, atol=1e-5, rtol=0)
        assert alone.masks.shape[1:] == (SIZE, SIZE)
        assert (alone.masks != together.masks).float().mean() < 1e-3
    assert MaskHead.task == "segmentation"


def test_objects_without_masks_are_an_error() -> None:
    maps, targets = painted((2,))
    with pytest.raises(ValueError, match="a mask for every object"):
        head()(maps, (Target(targets[0].boxes, targets[0].classes),))


def test_the_paper_s_settings() -> None:
    assert (PAPER.points, PAPER.classes, PAPER.bce, PAPER.dice, PAPER.no_object) == (12_544, 2, 5, 5, 0.1)
    assert (PAPER.net.queries, PAPER.net.upsample, PAPER.net.proposed) == (100, 1, False)


def _scored(answers: list[Answer], targets: tuple[Target, ...]) -> APs:
    located = [
        Located(
            (a.boxes * SIZE).numpy(),
            a.classes.numpy(),
            a.scores.numpy(),
            tuple(encode_mask(mask) for mask in a.masks.numpy()),
        )
        for a in answers
    ]
    objects = tuple(
        Objects(
            (mask_boxes(t.masks) * SIZE).numpy(),
            t.classes.numpy(),
            np.zeros(len(t.classes), dtype=bool),
            tuple(encode_mask(mask) for mask in t.masks.numpy()),
        )
        for t in targets
    )
    n = len(targets)
    images, sizes = ArrayImages(np.zeros((n, 4, 4, 3), np.uint8)), np.full((n, 2), SIZE)
    ids, parts = tuple(range(n)), ("train",) * n
    dataset = SceneDataset("painted", images, sizes, objects, ((),) * n, ("a", "b", "c"), (1, 2, 3), ids, parts)
    return average_precision(located, dataset, np.arange(n), "segm")


def test_eight_images_are_learned_by_heart() -> None:
    maps, targets = painted((1, 2, 3, 2, 1, 3, 2, 1))
    of = head()
    optimiser = torch.optim.AdamW(of.parameters(), lr=3e-3)
    for _ in range(40):
        for _ in range(10):
            optimiser.zero_grad()
            sum(of(maps, targets).values(), torch.zeros(())).backward()
            optimiser.step()
        if _scored(of.eval().answers(maps), targets).ap50 == 1.0:
            return
        of.train()
    figures = _scored(of.eval().answers(maps), targets)
    raise AssertionError(f"AP50 {figures.ap50}, AP {figures.ap}")


TWO = """
import sys, torch
from pathlib import Path
from torch import distributed
from keepsight.core import processes
from mask_scenes import gradients
distributed.init_process_group("gloo")
found = gradients()
if processes.is_main():
    torch.save(found, Path(sys.argv[1], "gradients.pt"))
distributed.destroy_process_group()
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """All objects are on one of them, so that what each alone would divide by is not what both together must."""
    launch(TWO, tmp_path / "two", 2, str(tmp_path / "two"))
    two = torch.load(tmp_path / "two" / "gradients.pt", weights_only=True)
    one = gradients()
    assert set(two) == set(one) == {name for name, _ in head().named_parameters()}
    for name, expected in one.items():
        assert expected.any() or name.endswith("key.bias")
        torch.testing.assert_close(two[name], expected, atol=2e-5, rtol=1e-4)
