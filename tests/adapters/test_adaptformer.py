"""AdaptFormer: the formula, the identity at first, off as if it were not there, alone in being trained."""

from __future__ import annotations

import copy

import pytest
import torch

from keepsight.adapters.adaptformer import AdaptFormer, AdaptFormerConfig, add_adaptformer
from keepsight.adapters.blocks import block_adapters, check_gradients, chosen_blocks, switched_off
from keepsight.adapters.kept import adapter_tensors, kept_adapters
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError

IMAGES = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vit() -> Backbone:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 0.5}
    return load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)


def moved(backbone: Backbone) -> None:
    """Every weight of every adapter is drawn."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for adapter in block_adapters(backbone).values():
            for p in adapter.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def adapted(backbone: Backbone, *blocks: int) -> Backbone:
    copied = copy.deepcopy(backbone).requires_grad_(False)
    add_adaptformer(copied, blocks, AdaptFormerConfig(bottleneck=4, scale=0.7))
    return copied


def test_it_starts_at_the_identity_and_off_is_bit_for_bit(vit: Backbone) -> None:
    changed = adapted(vit, 1, 2, 3)
    expected = vit(IMAGES, (1, 3))
    for features, before in zip(changed(IMAGES, (1, 3)), expected, strict=True):
        assert torch.equal(features.patches, before.patches)
    moved(changed)
    assert (changed(IMAGES, (3,))[0].patches - expected[1].patches).abs().max() > 0.1
    with switched_off(changed):
        for features, before in zip(changed(IMAGES, (1, 3)), expected, strict=True):
            assert torch.equal(features.patches, before.patches)
            assert torch.equal(features.cls, before.cls)
    assert all(adapter.on for adapter in block_adapters(changed).values())


def test_a_block_gives_what_the_paper_says(vit: Backbone) -> None:
    """Eq. 3 and 4, with the block's own LayerScale on the sum of MLP and branch."""
    changed = adapted(vit, 2)
    moved(changed)
    block = changed.block_modules()[1]
    branch = block.get_submodule("adaptformer")
    assert isinstance(branch, AdaptFormer)
    x = torch.randn(2, 5, 32)
    middle = x + block.ls1(block.attn(block.norm1(x)))
    normed = block.norm2(middle)
    plain = vit.block_modules()[1].get_submodule("mlp")(normed)
    bottleneck = (normed @ branch.down.weight.T + branch.down.bias).clamp(min=0)
    added = 0.7 * (bottleneck @ branch.up.weight.T + branch.up.bias)
    torch.testing.assert_close(block(x), middle + block.ls2(plain + added))


def test_it_alone_is_trained_and_alive(vit: Backbone) -> None:
    changed = adapted(vit, 2, 3)
    (features,) = changed(IMAGES, (3,))
    (features.cls * torch.randn(2, 32)).sum().backward()
    check_gradients(changed)
    trained = {name for name, p in changed.network.named_parameters() if p.requires_grad}
    assert trained == set(adapter_tensors(changed))
    assert len(trained) == 2 * 4
    assert sum(p.numel() for p in changed.parameters() if p.requires_grad) == 2 * (32 * 4 + 4 + 4 * 32 + 32)
    for p in block_adapters(changed)["blocks.2.adaptformer"].parameters():
        p.grad = None
    with pytest.raises(RuntimeError, match=r"1 of 2 adapters got no gradient.*blocks\.2\.adaptformer"):
        check_gradients(changed)


def test_a_copy_calls_its_own_adapters(vit: Backbone) -> None:
    first = adapted(vit, 1)
    second = copy.deepcopy(first)
    moved(second)
    assert torch.equal(first(IMAGES, (3,))[0].cls, vit(IMAGES, (3,))[0].cls)
    assert not torch.allclose(second(IMAGES, (3,))[0].cls, vit(IMAGES, (3,))[0].cls, atol=1e-3)
    assert kept_adapters(second) == kept_adapters(first)
    assert kept_adapters(vit) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_what_has_no_transformer_blocks_is_refused_and_left_alone(name: str) -> None:
    backbone = load_backbone(name, weights="random", size=64)
    before = set(backbone.network.state_dict())
    readout = Readout().resolved(backbone.depth)
    with pytest.raises(UserError, match=r"use finetune-lora or finetune-full\.$"):
        add_adaptformer(backbone, chosen_blocks(backbone, readout, 1), AdaptFormerConfig())
    assert set(backbone.network.state_dict()) == before


def test_blocks_from_the_first_to_the_last_that_is_read(vit: Backbone) -> None:
    assert chosen_blocks(vit, Readout(blocks=(2, 3)), 2) == (2, 3)
    assert chosen_blocks(vit, Readout(blocks=(2,)), 1) == (1, 2)
    with pytest.raises(UserError, match="first_block=3 leaves nothing to train"):
        chosen_blocks(vit, Readout(blocks=(2, 3)), 3)
