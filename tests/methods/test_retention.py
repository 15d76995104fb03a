"""Retention: what penalties get to see, the reference they compare with, and what attaching them leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Batch, Penalty, Readout, Seen
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.methods.reference import Reference
from keepsight.methods.retention import Attached, Retained

READOUT = Readout(blocks=(2,), pools=("mean",))


@pytest.fixture(scope="module")
def vit() -> Backbone:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
    return load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)


def finetune(vit: Backbone, adapter: Adapter, **settings: object) -> Finetune:
    torch.manual_seed(1)
    head = LinearHead(features=32, classes=2)
    torch.nn.init.normal_(head.weight_KF)
    return Finetune(copy.deepcopy(vit), READOUT, head, adapter, FinetuneConfig(**settings))


class Distance(Penalty):
    """Squared distance of the features, and of one more block's class tokens."""

    blocks = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    def forward(self, seen: Seen) -> Tensor:
        self.seen.append(seen)
        other = (seen.layers[1].cls - seen.layers0[1].cls).square().sum()
        return (seen.x_BF - seen.x0_BF).square().sum() + other


def retained(method: Finetune, *attached: Attached, kept_mib: int = 0) -> Retained:
    return Retained(method, method.encoder, method.head, attached, Reference(method.encoder, kept_mib))


def moved(method: Finetune) -> None:
    """Every trained weight is changed."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("adapter", ["lora", "full", "bitfit"])
def test_the_reference_stays_what_a_frozen_copy_is(vit: Backbone, adapter: Adapter) -> None:
    method = finetune(vit, adapter)
    reference = Reference(method.encoder)
    images = torch.randn(3, 3, 28, 28)
    moved(method)
    before, now = reference.features(images), method.encoder(images)
    expected = READOUT.read(copy.deepcopy(vit)(images, READOUT.blocks))
    assert torch.equal(before, expected)  # bit for bit
    assert not torch.allclose(now, expected, atol=1e-3)
    assert not before.requires_grad
    assert now.requires_grad


def test_the_reference_takes_memory_for_trained_weights_only(vit: Backbone) -> None:
    def own(adapter: Adapter, **settings: object) -> int:
        method = finetune(vit, adapter, **settings)
        there = {p.data_ptr() for p in method.parameters()}
        return sum(p.numel() for p in Reference(method.encoder).parameters() if p.data_ptr() not in there)

    weights = sum(p.numel() for p in vit.parameters())
    trained = sum(p.numel() for p in finetune(vit, "full", first_block=2).encoder.parameters() if p.requires_grad)
    assert own("lora") == 0
    assert own("full", first_block=2) == trained < weights


def test_penalties_see_the_step_now_and_before_in_one_pass(vit: Backbone) -> None:
    method = finetune(vit, "full")
    first, second = Distance(), Distance()
    trained = retained(method, Attached("near", first, 2.0), Attached("nearer", second, 1.0, margin=1e9))
    batch = Batch(torch.randn(4, 3, 28, 28), torch.tensor([0, 1, 0, 1]), torch.empty(0))
    losses = trained(batch, "model", 0)
    assert set(losses) == {"cross_entropy", "retain_near", "retain_nearer"}
    assert losses["retain_near"].item() == 0
    assert trained.reference.passed == 4
    moved(method)
    losses = trained(batch, "model", 7)
    assert first.seen[-1].step == 7
    assert torch.equal(first.seen[-1].x_BF, method.encoder(batch.inputs))
    by_hand = sum(
        (f(batch.inputs) - g(batch.inputs)).square().sum()
        for f, g in [
            (method.encoder, trained.reference.features),
            (lambda x: method.encoder.layers(x, (1,))[1].cls, lambda x: vit(x, (1,))[0].cls),
        ]
    )
    torch.testing.assert_close(losses["retain_near"], 2 * by_hand)
    assert losses["retain_nearer"].item() == 0  # within its margin


def test_reference_images_stand_in_for_the_task_images(vit: Backbone) -> None:
    method, penalty = finetune(vit, "lora"), Distance()
    trained = retained(method, Attached("near", penalty, 1.0))
    others = torch.randn(5, 3, 28, 28)
    trained(Batch(torch.randn(4, 3, 28, 28), torch.tensor([0, 1, 0, 1]), torch.empty(0), reference=others), "model", 0)
    assert torch.equal(penalty.seen[0].inputs, others)


def test_weight_zero_is_absent(vit: Backbone) -> None:
    batch = Batch(torch.randn(4, 3, 28, 28), torch.tensor([0, 1, 0, 1]), torch.empty(0))
    gradients = []
    for attached in ([], [Attached("near", Distance(), 0.0)], [Attached("near", Distance(), 1e-3)]):
        method = finetune(vit, "full")
        trained = retained(method, *attached)
        moved(method)
        losses = trained(batch, "model", 0)
        sum(losses.values()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained.parameters_of("model") if p.grad is not None]))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_images_that_come_again_pass_once(vit: Backbone) -> None:
    reference = Reference(finetune(vit, "lora").encoder, kept_mib=1)
    images = torch.randn(6, 3, 28, 28)
    first = reference.layers(images, (1,))
    again = reference.layers(images.flip(0), (1,))
    assert reference.passed == 6
    assert torch.equal(again[1].patches, first[1].patches.flip(0))
    reference.layers(torch.randn(2, 3, 28, 28), (1,))
    assert reference.passed == 8
    full = Reference(finetune(vit, "lora").encoder, kept_mib=0)
    full.layers(images)
    full.layers(images)
    assert full.passed == 12
