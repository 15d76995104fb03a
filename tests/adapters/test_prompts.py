"""Prompts: what a block gives with them, nothing outside a block changed, off as if they were not there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from keepsight.adapters.adaptformer import AdaptFormerConfig, add_adaptformer
from keepsight.adapters.blocks import block_adapters, check_gradients, switched_off
from keepsight.adapters.prompts import Prompts, VptConfig, add_prompts
from keepsight.backbones.cut import prefix, resume
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, UserError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
IMAGES = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
KINDS = [VptConfig(tokens=3), VptConfig(tokens=3, deep=False)]


def make(name: str = "vit_small_patch14_reg4_dinov2", **arguments: Any) -> Backbone:
    torch.manual_seed(0)
    arguments = SMALL | ({"init_values": 1.0} if "dinov2" in name else {}) | arguments
    return load_backbone(name, weights="random", size=28, timm_args=arguments).requires_grad_(False)


def with_prompts(backbone: Backbone, config: VptConfig, blocks: tuple[int, ...] = (1, 2, 3)) -> Backbone:
    copied = copy.deepcopy(backbone)
    torch.manual_seed(3)
    add_prompts(copied, blocks, config)
    return copied


@pytest.mark.parametrize("config", KINDS, ids=["deep", "shallow"])
def test_the_tokens_stand_after_class_and_registers_and_leave_with_their_block(config: VptConfig) -> None:
    """Block by block by hand: deep prompts are fresh in each block, shallow ones go through all."""
    plain = make()
    prompted = with_prompts(plain, config)
    x = prefix(plain, IMAGES, 0)
    assert x.shape == (2, 1 + 4 + 4, 32)
    trained = [a.tokens_PD for a in block_adapters(prompted).values() if isinstance(a, Prompts)]
    shown = trained[0]
    assert shown is not None
    between = shown.expand(2, -1, -1)
    for number, block in enumerate(plain.block_modules()):
        if config.deep:
            own = trained[number]
            assert own is not None
            between = own.expand(2, -1, -1)
        y = block(torch.cat([x[:, :5], between, x[:, 5:]], dim=1))
        x, between = torch.cat([y[:, :5], y[:, 8:]], dim=1), y[:, 5:8]
    (features,) = prompted(IMAGES, (3,))
    normed = plain.network.get_submodule("norm")(x)
    torch.testing.assert_close(features.cls, normed[:, 0])
    torch.testing.assert_close(features.patches, normed[:, 5:])
    assert [t is not None for t in trained] == [True, config.deep, config.deep]


@pytest.mark.parametrize("config", KINDS, ids=["deep", "shallow"])
def test_shapes_are_kept_and_off_is_bit_for_bit(config: VptConfig) -> None:
    plain = make()
    prompted = with_prompts(plain, config)
    for size in (28, 56):
        images = torch.randn(2, 3, size, size)
        expected, found = plain(images, (1, 2, 3)), prompted(images, (1, 2, 3))
        for features, before in zip(found, expected, strict=True):
            assert features.grid == before.grid
            assert features.patches.shape == before.patches.shape
            assert not torch.allclose(features.patches, before.patches, atol=1e-5)
        with switched_off(prompted):
            for features, before in zip(prompted(images, (1, 2, 3)), expected, strict=True):
                assert torch.equal(features.patches, before.patches)
                assert torch.equal(features.cls, before.cls)
    assert torch.equal(prompted(images, (2,))[0].cls, found[1].cls)  # what a shorter pass left over is not taken up
    assert torch.equal(prompted(images, (3,))[0].cls, found[2].cls)


@pytest.mark.parametrize("rope", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_rotary_positions_stay_with_their_patches(rope: str) -> None:
    """Attention rotates what comes after its prefix: the prompts by nothing, and each patch as before."""
    torch.manual_seed(0)
    size = 28 if "14" in rope else 32
    plain = load_backbone(rope, weights="random", size=size, timm_args=SMALL).requires_grad_(False)
    prompted = with_prompts(plain, VptConfig(tokens=3))
    images = torch.randn(2, 3, size, size)
    seen: dict[str, torch.Tensor] = {}

    def note(key: str, backbone: Backbone) -> Any:
        attention = backbone.block_modules()[0].get_submodule("attn")
        return attention.register_forward_pre_hook(
            lambda _, arguments, named: seen.__setitem__(key, named["rope"]), with_kwargs=True
        )

    for key, backbone in (("plain", plain), ("prompted", prompted)):
        hook = note(key, backbone)
        backbone(images, (3,))
        hook.remove()
    assert torch.equal(seen["prompted"][..., 3:, :], seen["plain"])
    half = seen["plain"].shape[-1] // 2
    assert not seen["prompted"][..., :3, :half].any()  # sines
    assert bool((seen["prompted"][..., :3, half:] == 1).all())  # cosines


@pytest.mark.parametrize("config", KINDS, ids=["deep", "shallow"])
def test_going_on_from_the_middle_puts_them_in_there(config: VptConfig) -> None:
    plain = make()
    prompted = with_prompts(plain, config, (2, 3))
    state = prefix(plain, IMAGES, 1)
    assert torch.equal(prefix(prompted, IMAGES, 1), state)
    (expected,) = prompted(IMAGES, (3,))
    (found,) = resume(prompted, state, 1, (3,))
    torch.testing.assert_close(found.patches, expected.patches)
    torch.testing.assert_close(found.cls, expected.cls)


@pytest.mark.parametrize("config", KINDS, ids=["deep", "shallow"])
def test_they_alone_are_trained_and_alive_and_copied(config: VptConfig) -> None:
    prompted = with_prompts(make(), config)
    (features,) = prompted(IMAGES, (3,))
    features.patches.square().sum().backward()
    check_gradients(prompted)
    trained = [p for p in prompted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == (3 if config.deep else 1) * 3 * 32
    copied = copy.deepcopy(prompted)
    with torch.no_grad():
        next(p for p in copied.parameters() if p.requires_grad).normal_()
    (same,) = prompted(IMAGES, (3,))
    assert torch.equal(same.cls, features.cls)
    assert not torch.allclose(copied(IMAGES, (3,))[0].cls, features.cls, atol=1e-3)


@pytest.mark.parametrize(("name", "arguments"), [("beit_base_patch16_224", SMALL), ("test_convnext", {})])
def test_networks_that_take_no_more_tokens_are_refused_and_left_alone(name: str, arguments: dict[str, Any]) -> None:
    backbone = load_backbone(name, weights="random", size=64, timm_args=arguments)
    images = torch.randn(2, 3, 64, 64)
    before, names = backbone(images, (3,))[0].cls, set(backbone.network.state_dict())
    with pytest.raises(UserError, match=r"do not take: use finetune-lora or finetune-full\.$"):
        add_prompts(backbone, (1, 2, 3), VptConfig())
    assert set(backbone.network.state_dict()) == names
    assert torch.equal(backbone(images, (3,))[0].cls, before)


def test_prompts_beside_adaptformer() -> None:
    plain = make()
    both = with_prompts(plain, KINDS[0])
    add_adaptformer(both, (1, 2, 3), AdaptFormerConfig(bottleneck=4))
    assert torch.equal(both(IMAGES, (3,))[0].cls, with_prompts(plain, KINDS[0])(IMAGES, (3,))[0].cls)
