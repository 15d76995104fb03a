"""Attention that is read of networks equals what the networks themselves mix their values by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.adapters.lora import split_qkv
from keepsight.backbones.load import load_backbone
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.core import Backbone, Preprocessing, UserError
from keepsight.features.attention import attention, class_attention, probabilities, rollout

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def tiny(architecture: str, size: int = 64, **arguments: Any) -> TimmBackbone:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    backbone = TimmBackbone(
        name=architecture,
        architecture=architecture,
        preprocessing=Preprocessing(size=size, mean=half, std=half),
        timm_args={**SMALL, **arguments},
    ).eval()
    with torch.no_grad():  # initial weights are so small that all attention would be nearly even
        for name, p in backbone.named_parameters():
            if "qkv" in name or "_proj" in name or name.endswith("_bias"):
                p.normal_(std=0.5)
    return backbone


def remade(backbone: Backbone, block: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a block's attention module, and the same made of the read attention and of v."""
    module: Any = backbone.block_modules()[block - 1].get_submodule("attn")
    kept: dict[str, Tensor] = {}
    hook = module.register_forward_hook(lambda _, args, out: kept.update(x=args[0], out=out))
    found_BHNN = attention(backbone, images, (block,))[:, 0]
    hook.remove()
    x_BND = kept["x"]
    with torch.no_grad():
        if module.qkv is not None:
            v_BND = module.qkv(x_BND).chunk(3, dim=-1)[2]
            bias = getattr(module, "v_bias", None)
            v_BND = v_BND if bias is None else v_BND + bias
        else:
            v_BND = module.v_proj(x_BND)
        v_BHNE = v_BND.unflatten(2, (module.num_heads, -1)).transpose(1, 2)
        mixed = module.proj(module.norm((found_BHNN @ v_BHNE).transpose(1, 2).flatten(2)))
    assert found_BHNN.std() > 1e-3  # not even
    torch.testing.assert_close(found_BHNN.sum(dim=-1), torch.ones(found_BHNN.shape[:-1]))
    return kept["out"], mixed


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("vit_small_patch14_reg4_dinov2", {"size": 56}),
        ("vit_small_patch16_224", {"qk_norm": True}),
        ("eva02_tiny_patch14_224", {"size": 56}),
        ("eva_giant_patch14_224", {"size": 56}),
        ("vit_small_patch16_dinov3", {}),
    ],
)
def test_read_attention_times_v_is_what_timm_gives(architecture: str, arguments: dict[str, Any]) -> None:
    backbone = tiny(architecture, **arguments)
    side = backbone.preprocessing.size
    out, mixed = remade(backbone, 2, torch.randn(2, 3, side, side))
    torch.testing.assert_close(mixed, out, rtol=0, atol=1e-5)


def test_read_attention_times_v_is_what_the_packaged_vit_gives() -> None:
    backbone = load_backbone("vit_s14_imgfocus", size=56).eval()
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for block in (1, 12):
        out, mixed = remade(backbone, block, images)
        torch.testing.assert_close(mixed, out, rtol=0, atol=1e-5)
    found = attention(backbone, images, (12, 3))
    assert found.shape == (2, 2, 6, 17, 17)
    assert (found[:, 1] == attention(backbone, images, (3,))[:, 0]).all()


def test_it_is_the_same_written_out_and_with_q_k_and_v_apart() -> None:
    backbone = tiny("vit_small_patch16_224")
    images = torch.randn(2, 3, 64, 64)
    expected = attention(backbone, images, (1, 2))
    for module in backbone.network.modules():
        if "fused_attn" in vars(module):
            module.fused_attn = False
    torch.testing.assert_close(attention(backbone, images, (1, 2)), expected)
    assert not any(vars(module).get("fused_attn", False) for module in backbone.network.modules())
    split_qkv(backbone.network)
    torch.testing.assert_close(attention(backbone, images, (1, 2)), expected)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in backbone.block_modules())


@pytest.mark.parametrize(
    ("architecture", "arguments", "why"),
    [
        ("resnet18", {}, "not a sequence of transformer blocks"),
        ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}, "no class token"),
        ("vit_medium_patch16_reg4_gap_256", SMALL, "no class token"),
    ],
)
def test_networks_without_it_are_refused(architecture: str, arguments: dict[str, Any], why: str) -> None:
    half = (0.5, 0.5, 0.5)
    backbone = TimmBackbone(
        name=architecture,
        architecture=architecture,
        preprocessing=Preprocessing(size=64, mean=half, std=half),
        timm_args=arguments,
    ).eval()
    with pytest.raises(UserError, match=f"What {architecture} attends to is not known, because .*{why}"):
        attention(backbone, torch.zeros(1, 3, 64, 64), (backbone.depth,))


def test_weights_are_those_of_torch() -> None:
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    keep = torch.rand(2, 1, 5, 5) < 0.7
    keep |= torch.eye(5, dtype=torch.bool)
    few = torch.randn(2, 2, 5, 8)
    for key, value, named in (
        (k, v, {}),
        (k, v, {"scale": 0.7}),
        (k, v, {"is_causal": True}),
        (k, v, {"attn_mask": keep}),
        (k, v, {"attn_mask": torch.randn(2, 4, 5, 5)}),
        (few, few, {"enable_gqa": True}),
    ):
        arguments: dict[str, Any] = named
        expected = F.scaled_dot_product_attention(q, key, value, **arguments)
        mixed = probabilities(q, key, value, **arguments) @ value.repeat_interleave(4 // value.shape[1], dim=1)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


def test_rolled_out_attention_multiplies_from_the_last_block_down() -> None:
    a = torch.rand(1, 3, 2, 4, 4).softmax(dim=-1)
    one = torch.eye(4)
    first, second, third = (0.5 * a[0, block].mean(dim=0) + 0.5 * one for block in range(3))
    found = rollout(a)
    torch.testing.assert_close(found[0], third @ second @ first)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(1, 4))


def test_the_class_tokens_shares_are_of_patches_alone() -> None:
    a = torch.rand(2, 3, 7, 7)
    found = class_attention(a, (2, 2))  # one class token, two registers
    assert found.shape == (2, 3, 2, 2)
    torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(2, 3))
    torch.testing.assert_close(found[1, 2, 1, 0] / found[1, 2, 0, 1], a[1, 2, 0, 5] / a[1, 2, 0, 4])
