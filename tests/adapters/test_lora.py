"""LoRA: adapts q and v and nothing else, starts as the identity, is alive, merges exactly."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from keepsight.adapters import lora
from keepsight.adapters.freeze import reached_parameters, train_reached
from keepsight.adapters.lora import (
    LoraConfig,
    SplitQKV,
    add_lora,
    check_lora_gradients,
    fuse_qkv,
    merge_lora,
    split_qkv,
)
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
# LayerScale of 1, since random DINOv2 weights start at 1e-5 and attention would hardly matter.
FUSED = ("vit_small_patch14_dinov2", 28, {**SMALL, "init_values": 1.0})
# Fused qkv with separate q and v biases: timm's EVA calls F.linear on the weight unless it is told otherwise.
EVA = ("eva02_tiny_patch14_224", 28, {**SMALL, "qkv_fused": True})
EVA_SEPARATE = ("eva02_tiny_patch14_224", 28, SMALL)
ALL = [FUSED, EVA, EVA_SEPARATE]


def small(case: tuple[str, int, dict[str, object]]) -> Backbone:
    torch.manual_seed(0)
    name, size, arguments = case
    return load_backbone(name, weights="random", size=size, timm_args=arguments)


def output(backbone: Backbone, readout: Readout) -> torch.Tensor:
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return readout.read(backbone(images, readout.blocks))


def backward(backbone: Backbone, readout: Readout) -> None:
    x = output(backbone, readout)
    (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).sum().backward()


def test_split_and_fused_again_are_the_same_map() -> None:
    backbone, readout = small(FUSED), Readout(blocks=(3,))
    before, state = output(backbone, readout), {k: v.clone() for k, v in backbone.network.state_dict().items()}
    assert len(split_qkv(backbone.network)) == 3
    torch.testing.assert_close(output(backbone, readout), before, atol=1e-6, rtol=0)
    fuse_qkv(backbone.network)
    assert not any(isinstance(m, SplitQKV) for m in backbone.network.modules())
    assert all(torch.equal(v, state[k]) for k, v in backbone.network.state_dict().items())


@pytest.mark.parametrize("case", ALL, ids=["vit", "eva-fused", "eva"])
def test_lora_is_the_identity_at_first_and_alive(case: tuple[str, int, dict[str, object]]) -> None:
    backbone, readout = small(case), Readout(blocks=(3,), pools=("cls", "mean"))
    before = output(backbone, readout).detach()
    peft_model = add_lora(backbone, readout, LoraConfig(rank=2))
    torch.testing.assert_close(output(backbone, readout).detach(), before, atol=1e-6, rtol=0)
    backward(backbone, readout)
    check_lora_gradients(peft_model)
    trained = [name for name, p in peft_model.named_parameters() if p.requires_grad]
    assert len(trained) == 3 * 2 * 2  # blocks x (q, v) x (A, B)
    assert all(".lora_" in name for name in trained)
    assert not any(".k." in name or "k_proj" in name for name in trained)


@pytest.mark.parametrize("case", ALL, ids=["vit", "eva-fused", "eva"])
def test_merged_outputs_and_layout_equal(case: tuple[str, int, dict[str, object]]) -> None:
    backbone, readout = small(case), Readout(blocks=(3,))
    names = list(backbone.network.state_dict())
    peft_model = add_lora(backbone, readout, LoraConfig(rank=2, alpha=3))
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if ".lora_" in name:
                p.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    adapted = output(backbone, readout).detach()
    merge_lora(backbone, peft_model)
    merged = output(backbone, readout).detach()
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=0)
    assert list(backbone.network.state_dict()) == names
    assert (merged - output(small(case), readout)).abs().max() > 1e-3


def test_the_update_is_alpha_over_rank_times_ba() -> None:
    backbone = small(FUSED)
    q_before = backbone.network.get_submodule("blocks.0.attn.qkv").weight[:32].clone()
    peft_model = add_lora(backbone, Readout(blocks=(3,)), LoraConfig(rank=2, alpha=6))
    layer = backbone.network.get_submodule("blocks.0.attn.qkv.q")
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    a, b = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    merge_lora(backbone, peft_model)
    after = backbone.network.get_submodule("blocks.0.attn.qkv").weight[:32]
    torch.testing.assert_close(after, q_before + 6 / 2 * b @ a)


def test_only_reached_blocks_are_adapted() -> None:
    backbone = small(FUSED)
    peft_model = add_lora(backbone, Readout(blocks=(2,)), LoraConfig(rank=2))
    names = [name for name, p in peft_model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 2
    assert not any("blocks.2." in name for name in names)


def test_dead_adapters_are_a_hard_failure() -> None:
    backbone, readout = small(FUSED), Readout(blocks=(3,))
    peft_model = add_lora(backbone, readout, LoraConfig(rank=2))
    backward(backbone, readout)
    layer = backbone.network.get_submodule("blocks.1.attn.qkv.v")
    for p in layer.parameters():
        p.grad = None
    with pytest.raises(RuntimeError, match=r"1 of 6 LoRA adapters got no gradient.*blocks\.1\.attn\.qkv\.v"):
        check_lora_gradients(peft_model)


@pytest.mark.parametrize(
    ("name", "config"),
    [("test_resnet", LoraConfig()), ("test_vit", LoraConfig(targets="no_such_layer"))],
    ids=["cnn", "misspelt"],
)
def test_a_target_that_matches_nothing_is_an_error(name: str, config: LoraConfig) -> None:
    backbone = load_backbone(name, weights="random", size=64)
    with pytest.raises(UserError, match="found nothing to adapt"):
        add_lora(backbone, Readout(blocks=(2,)), config)


def test_named_targets() -> None:
    backbone = small(FUSED)
    peft_model = add_lora(backbone, Readout(blocks=(3,)), LoraConfig(rank=2, targets=r"mlp\.fc1$"))
    assert len([n for n, p in peft_model.named_parameters() if p.requires_grad]) == 3 * 2


def test_reached_parameters_end_at_the_readout() -> None:
    backbone = small(FUSED)
    reached = reached_parameters(backbone, Readout(blocks=(2,), pools=("mean",)))
    assert {name.split(".")[1] for name in reached if name.startswith("blocks")} == {"0", "1"}
    assert "norm.weight" not in reached
    assert "pos_embed" in reached
    train_reached(backbone, Readout(blocks=(2,), pools=("mean",)))
    assert {name for name, p in backbone.network.named_parameters() if p.requires_grad} == reached


def test_reached_parameters_leave_no_trace() -> None:
    backbone = load_backbone("test_resnet", weights="random", size=64)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.requires_grad_(False)
    reached_parameters(backbone, Readout(blocks=(2,), pools=("mean",)))
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(p.grad is None for p in backbone.parameters())
    assert isinstance(backbone.network, nn.Module)


@pytest.mark.parametrize("targets", [r"qkv\.[qv]$", r"qkv\.[qkv]$", r"qkv\.v$"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_product_for_all_parts_equals_pefts_own_layers(targets: str, dropout: float) -> None:
    """Values and gradients, with adapters that have moved; dropout (here in eval mode) takes PEFT's own way."""
    backbone, readout = small(FUSED), Readout(blocks=(3,))
    peft_model = add_lora(backbone, readout, LoraConfig(rank=3, alpha=5.0, targets=targets, dropout=dropout))
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    split = next(m for m in backbone.network.modules() if isinstance(m, SplitQKV))
    backbone.eval()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    direction = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(4))
    trained = [p for p in split.parameters() if p.requires_grad]
    found = []
    for one_by_one in (False, True):
        y = torch.cat([split.q(x), split.k(x), split.v(x)], dim=-1) if one_by_one else split(x)
        found.append((y, *torch.autograd.grad((y * direction).sum(), [x, *trained])))
    assert len(trained) == 2 * len(re.findall(r"[qkv]", targets.split(".")[-1]))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


def test_the_split_weight_is_one_matrix_without_a_copy_until_it_is_moved() -> None:
    backbone = small(FUSED)
    backbone.requires_grad_(False)
    split_qkv(backbone.network)
    split = next(m for m in backbone.network.modules() if isinstance(m, SplitQKV))
    weights = [layer.weight for layer in (split.q, split.k, split.v)]
    view = lora._stacked(weights)
    assert view.data_ptr() == weights[0].data_ptr()
    assert torch.equal(view, torch.cat(weights))
    moved = copy.deepcopy(split)
    x = torch.randn(2, 32)
    torch.testing.assert_close(moved(x), split(x))
