"""Which weights are trained: from a block on, biases alone; and gradient checkpointing changes memory, not gradients."""

from __future__ import annotations

import pytest
import torch

from keepsight.adapters.freeze import (
    block_of_parameters,
    checkpoint_blocks,
    plain_blocks,
    train_biases,
    train_reached,
    trainable_names,
)
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError


def small() -> Backbone:
    arguments = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
    return load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)


def trained(backbone: Backbone) -> set[str]:
    return {name for name, p in backbone.network.named_parameters() if p.requires_grad}


def test_every_parameter_has_its_block() -> None:
    found = block_of_parameters(small())
    assert found["patch_embed.proj.weight"] == found["pos_embed"] == found["cls_token"] == 0
    assert found["blocks.0.attn.qkv.weight"] == 1
    assert found["blocks.2.ls2.gamma"] == 3
    assert found["norm.weight"] == 4


def test_first_block_freezes_what_is_below() -> None:
    backbone, readout = small(), Readout(blocks=(3,))
    train_reached(backbone, readout, first_block=2)
    assert {name.split(".")[1] for name in trained(backbone) if name.startswith("blocks")} == {"1", "2"}
    assert "norm.weight" in trained(backbone)
    assert "pos_embed" not in trained(backbone)
    with pytest.raises(UserError, match="first_block=3"):
        trainable_names(backbone, Readout(blocks=(2, 3)), first_block=3)


def test_bitfit_trains_biases_alone() -> None:
    backbone = small()
    train_biases(backbone, Readout(blocks=(2,)))
    names = trained(backbone)
    assert names
    assert all(name.endswith("bias") for name in names)
    assert {"blocks.0.attn.qkv.bias", "blocks.1.norm2.bias", "patch_embed.proj.bias"} <= names
    assert not any(name.startswith("blocks.2") for name in names)  # not reached


def test_a_network_without_blocks_cannot_weight_them() -> None:
    backbone = load_backbone("test_efficientnet", weights="random", size=64)
    with pytest.raises(UserError, match="layer_decay"):
        block_of_parameters(backbone)
    with pytest.raises(UserError, match="checkpoint_blocks"):
        checkpoint_blocks(backbone)


def test_checkpointed_blocks_give_the_same_gradients_and_run_twice() -> None:
    images, ran = torch.randn(2, 3, 28, 28), []
    gradients = []
    for checkpointed in (False, True):
        backbone = small()
        backbone.block_modules()[0].norm1.register_forward_hook(lambda *_: ran.append(1))
        if checkpointed:
            checkpoint_blocks(backbone)
        train_reached(backbone, Readout(blocks=(3,)))
        ran.clear()
        (features,) = backbone(images, (3,))
        features.cls.square().sum().backward()
        assert len(ran) == 1 + checkpointed
        gradients.append({n: p.grad for n, p in backbone.network.named_parameters() if p.grad is not None})
        plain_blocks(backbone)
        assert not any("forward" in vars(module) for module in backbone.block_modules())
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-5)
