"""Stage 1 and stage 2 of ViSFT as trainables: what is frozen stays, what is trained has gradients, and tasks are drawn alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keepsight.adapters.lora import LoraConfig
from keepsight.backbones.load import load_backbone
from keepsight.core import TASKS, Answer, Batch, Readout, Target, Task, TaskHead, UserError
from keepsight.methods.captioning import CaptionHead
from keepsight.methods.detection import DetrHead
from keepsight.methods.encoder import AdapterConfig, TunedBackbone
from keepsight.methods.segmentation import MaskHead
from keepsight.methods.visft import HeadAlone, JointTuning, check_probabilities, task_of_step, weights_hash


class Counting(TaskHead):
    """Guesses how many objects there are."""

    def __init__(self, channels: int, task: Task = "detection") -> None:
        super().__init__()
        self.task = task
        self.linear, self.drop = nn.Linear(channels, 1), nn.Dropout(0.5)

    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        count_B = torch.tensor([float(len(t.boxes)) for t in targets])
        return {"count": (self.linear(self.drop(map_BChw.mean(dim=(2, 3)))).squeeze(1) - count_B).square().mean()}

    def answers(self, map_BChw: Tensor) -> list[Answer]:
        return [Answer() for _ in map_BChw]

    def shape(self) -> dict[str, Any]:
        return {"channels": self.linear.in_features, "task": self.task}


def batch(inputs: Tensor, task: Task | None = "detection") -> Batch:
    targets = tuple(
        Target(boxes=torch.rand(i, 4), classes=torch.zeros(i, dtype=torch.int64)) for i in range(len(inputs))
    )
    return Batch(inputs, torch.empty(0), torch.empty(0), targets=targets, task=task)


def joint(dropout_in_heads: bool = False) -> JointTuning:
    torch.manual_seed(0)
    small = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
    backbone = load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=small)
    encoder = TunedBackbone(backbone, Readout(blocks=(2, 3), pools=("mean",)), "lora", AdapterConfig())
    heads: dict[Task, TaskHead] = {"detection": Counting(64), "captioning": Counting(64, "captioning")}
    return JointTuning(encoder, heads, dropout_in_heads)


def test_a_head_alone_learns_from_maps() -> None:
    torch.manual_seed(0)
    method = HeadAlone(Counting(8))
    losses = method(batch(torch.randn(3, 8, 2, 2)), "model", 0)
    losses["count"].backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_stage_two_trains_lora_and_nothing_else() -> None:
    method = joint().train()
    losses = method(batch(torch.randn(3, 3, 28, 28), "captioning"), "model", 0)
    assert set(losses) == {"captioning_count"}
    losses["captioning_count"].backward()
    method.after_first_step()
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert all(".q." in name or ".v." in name for name in trained)
    with torch.no_grad():
        for p in method.parameters_of("model"):
            p.add_(0.1)
    assert set(method.check_heads()) == {"detection", "captioning"}
    with torch.no_grad():
        next(method.heads["detection"].parameters()).add_(1e-6)
    with pytest.raises(RuntimeError, match="frozen head for detection"):
        method.check_heads()


def test_dropout_in_heads_is_a_choice() -> None:
    images = torch.randn(2, 3, 28, 28)
    for wanted in (False, True):
        method = joint(wanted).train()
        torch.manual_seed(1)
        first = method(batch(images), "model", 0)["detection_count"]
        second = method(batch(images), "model", 0)["detection_count"]
        assert (first == second) != wanted


def test_merged_and_unmerged_training_and_evaluation_agree() -> None:
    method, images = joint(), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        for p in method.parameters_of("model"):
            p.add_(0.05 * torch.randn(p.shape))
        training, evaluation = method.train().map(images), method.eval().map(images)
        method.encoder.merge()
        merged = method.map(images)
    torch.testing.assert_close(training, evaluation, atol=1e-5, rtol=0)
    torch.testing.assert_close(merged, evaluation, atol=1e-5, rtol=0)


def packaged() -> JointTuning:
    """Stage 2 as it runs: the packaged ViT with its weights, LoRA away from zero, and small heads of all three kinds."""
    torch.manual_seed(0)
    lora = AdapterConfig(lora=LoraConfig(rank=16, alpha=16))
    encoder = TunedBackbone(
        load_backbone("vit_s14_imgfocus", size=56), Readout(blocks=(8, 9, 10), pools=("mean",)), "lora", lora
    )
    layer = {"heads": 2, "feedforward": 32}
    boxes = {"width": 32, "decoder_width": 32, "decoder_layers": 1, "queries": 4, "layer": layer}
    masks = {"width": 32, "mask_width": 16, "decoder_layers": 1, "queries": 4, "encoder": layer, "decoder": layer}
    heads: dict[Task, TaskHead] = {
        "detection": DetrHead(3 * 384, 2, {"net": boxes}),
        "segmentation": MaskHead(3 * 384, 2, 56, {"points": 64, "net": masks}),
        "captioning": CaptionHead(3 * 384, 9, {"width": 16, "layers": 1, "heads": 2}),
    }
    method = JointTuning(encoder, heads)
    with torch.no_grad():
        for name, p in method.encoder.named_parameters():
            if ".lora_B." in name:
                p.add_(0.005 * torch.randn(p.shape))  # about what a few hundred steps do
    return method


def test_the_packaged_backbone_gives_one_map_in_every_mode() -> None:
    """Merging rounds: within 1e-5 of the map's largest entry, which is about 12 (1.2e-6 to 1.5e-6 of it was found)."""
    method = packaged()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad(), method.encoder.untouched():
        before = method.eval().map(images)
    with torch.no_grad():
        training, evaluation = method.train().map(images), method.eval().map(images)
        method.encoder.merge()
        merged, merged_training = method.map(images), method.train().map(images)
    assert torch.equal(training, evaluation)
    largest = float(evaluation.abs().max())
    for each in (merged, merged_training):
        torch.testing.assert_close(each, evaluation, atol=1e-5 * largest, rtol=0)
    assert (evaluation - before).abs().max() > 0.1


def test_every_task_reaches_all_of_lora_in_the_packaged_backbone_and_no_head_moves() -> None:
    method = packaged().train()
    images = torch.randn(3, 3, 56, 56)
    mask = torch.zeros(1, 56, 56, dtype=torch.bool)
    mask[:, 14:42, 7:35] = True
    one = Target(torch.tensor([[0.375, 0.5, 0.5, 0.5]]), torch.tensor([1]), mask, torch.tensor([[1, 5, 6, 2]]))
    before = {name: p.detach().clone() for name, p in method.heads.state_dict().items()}
    trained = dict(method.encoder.named_parameters())
    trained = {name: p for name, p in trained.items() if p.requires_grad}
    assert len(trained) == 10 * 2 * 2  # A and B of q and v in the ten blocks that the map reaches
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    for task in TASKS:
        optimizer.zero_grad()
        losses = method(Batch(images, torch.empty(0), torch.empty(0), targets=(one,) * 3, task=task), "model", 0)
        torch.stack(list(losses.values())).sum().backward()
        method.after_first_step()
        dead = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
        assert not dead, f"{task}: {dead}"
        optimizer.step()
    after = method.heads.state_dict()
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert set(method.check_heads()) == set(TASKS)


def test_tasks_are_drawn_as_often_as_asked_and_the_same_everywhere() -> None:
    probabilities = check_probabilities(
        {"captioning": 0.4, "segmentation": 0.3, "detection": 0.3}, ("captioning", "detection")
    )
    drawn = [task_of_step(probabilities, seed=3, step=step) for step in range(4000)]
    assert drawn == [task_of_step(probabilities, seed=3, step=step) for step in range(4000)]
    counts = Counter(drawn)
    assert counts["captioning"] / 4000 == pytest.approx(4 / 7, abs=0.03)
    assert set(counts) == {"captioning", "detection"}
    assert drawn != [task_of_step(probabilities, seed=4, step=step) for step in range(4000)]
    with pytest.raises(UserError, match="must not be negative"):
        check_probabilities({"detection": -1.0}, ("detection",))


def test_the_hash_of_weights_sees_every_bit() -> None:
    head = Counting(4)
    before = weights_hash(head)
    assert weights_hash(head) == before
    with torch.no_grad():
        head.linear.bias += np.finfo(np.float32).eps
    assert weights_hash(head) != before
