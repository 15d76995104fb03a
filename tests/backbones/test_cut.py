"""A backbone cut after any block gives what it gives whole, and the lower blocks are not run again."""

from __future__ import annotations

import pytest
import torch

from keepsight.adapters.lora import LoraConfig, add_lora
from keepsight.backbones.cut import can_cut, prefix, resume
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}
KINDS = {
    "vit": ("vit_small_patch14_dinov2", 28, {**SMALL, "init_values": 1.0}),
    "registers": ("vit_small_patch14_reg4_dinov2", 28, {**SMALL, "init_values": 1.0}),
    "rotary": ("eva02_tiny_patch14_224", 28, SMALL),
    "no-class-token": ("vit_base_patch16_siglip_224", 32, SMALL),
    "convolutions": ("test_convnext", 64, {}),
}


def backbone_of(kind: str) -> Backbone:
    name, size, arguments = KINDS[kind]
    return load_backbone(name, weights="random", size=size, timm_args=arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_equals_the_whole(kind: str) -> None:
    backbone = backbone_of(kind)
    assert can_cut(backbone)
    size = backbone.preprocessing.size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in range(backbone.depth):
            blocks = tuple(range(block + 1, backbone.depth + 1))
            whole, cut = backbone(images, blocks), resume(backbone, prefix(backbone, images, block), block, blocks)
            for a, b in zip(whole, cut, strict=True):
                assert torch.equal(a.cls, b.cls)
                assert torch.equal(a.patches, b.patches)
                assert a.grid == b.grid


def test_lower_blocks_run_in_the_prefix_only_and_upper_ones_in_the_rest_only() -> None:
    backbone, ran = backbone_of("vit"), []
    for number, module in enumerate(backbone.block_modules(), 1):
        module.norm1.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        state = prefix(backbone, torch.randn(1, 3, 28, 28), 2)
        assert ran == [1, 2]
        ran.clear()
        resume(backbone, state, 2, (3,))
        assert ran == [3]
        ran.clear()
        backbone(torch.randn(1, 3, 28, 28), (4,))
        assert ran == [1, 2, 3, 4]  # nothing of the cut is left behind


def test_gradients_and_adapters_live_above_the_cut() -> None:
    backbone, readout = backbone_of("vit"), Readout(blocks=(4,))
    images = torch.randn(2, 3, 28, 28)
    state = prefix(backbone, images, 2).detach()
    peft_model = add_lora(backbone, readout, LoraConfig(rank=2), first_block=3)
    weights = torch.randn(32)
    (readout.read(resume(backbone, state, 2, (4,))) @ weights).sum().backward()
    cut = {name: p.grad for name, p in peft_model.named_parameters() if p.requires_grad}
    assert cut
    assert not any(f"blocks.{b}." in name for name in cut for b in (0, 1))
    peft_model.zero_grad()
    (readout.read(backbone(images, (4,))) @ weights).sum().backward()
    for name, p in peft_model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(cut[name], p.grad)


def test_a_network_that_is_no_sequence_of_blocks_says_so() -> None:
    backbone = load_backbone("test_efficientnet", weights="random", size=64)
    assert not can_cut(backbone)
    with pytest.raises(UserError, match="views=0"):
        prefix(backbone, torch.zeros(1, 3, 64, 64), 1)
