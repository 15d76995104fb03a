"""DoRA, OFT and OSF through PEFT: as PEFT's own layers, off bit for bit, alive, merged; intruder dimensions reduced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from keepsight.adapters.lora import (
    IntruderConfig,
    LoraConfig,
    SplitQKV,
    add_lora,
    check_lora_gradients,
    merge_lora,
    reduce_intruders,
)
from keepsight.adapters.orthogonal import OftConfig, OsfConfig, add_oft, add_osf
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
READOUT = Readout(blocks=(3,), pools=("cls", "mean"))
Add = Callable[[Backbone], PeftModel]

VARIANTS: dict[str, Add] = {
    "dora": lambda b: add_lora(b, READOUT, LoraConfig(variant="dora", rank=2)),
    "dora with dropout": lambda b: add_lora(b, READOUT, LoraConfig(variant="dora", rank=2, dropout=0.3)),
    "oft": lambda b: add_oft(b, READOUT, OftConfig(block_size=8)),
    "oft, series": lambda b: add_oft(b, READOUT, OftConfig(block_size=8, exact=False)),
    "osf": lambda b: add_osf(b, READOUT, OsfConfig()),
}


def make(name: str = "vit_small_patch14_dinov2") -> Backbone:
    torch.manual_seed(0)
    arguments = SMALL | ({"init_values": 1.0} if "dinov2" in name else {})
    return load_backbone(name, weights="random", size=28, timm_args=arguments)


def output(backbone: Backbone) -> Tensor:
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return READOUT.read(backbone(images, READOUT.blocks))


def moved(peft_model: PeftModel, by: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in peft_model.parameters():
            if p.requires_grad:
                p.add_(by * torch.randn(p.shape, generator=generator))


@pytest.fixture(params=VARIANTS)
def add(request: pytest.FixtureRequest) -> Add:
    return VARIANTS[request.param]


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "eva02_tiny_patch14_224"])
def test_they_start_at_the_identity_and_are_alive_and_off_bit_for_bit(add: Add, name: str) -> None:
    backbone = make(name)
    before = output(backbone).detach()
    peft_model = add(backbone)
    x = output(backbone)
    torch.testing.assert_close(x.detach(), before, atol=2e-6, rtol=1e-5)
    (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    check_lora_gradients(peft_model)
    trained = [n for n, p in peft_model.named_parameters() if p.requires_grad]
    assert all(".lora_" in n or ".oft_" in n or ".osf_" in n for n in trained)
    assert len({n.split(".lora_")[0].split(".oft_")[0].split(".osf_")[0] for n in trained}) == 3 * 2
    moved(peft_model)
    assert not torch.allclose(output(backbone), before, atol=1e-3)
    with peft_model.disable_adapter():
        assert torch.equal(output(backbone), before)


def test_merged_outputs_and_layout_equal(add: Add) -> None:
    backbone = make()
    names = list(backbone.network.state_dict())
    peft_model = add(backbone)
    moved(peft_model)
    backbone.eval()
    adapted = output(backbone).detach()
    merge_lora(backbone, peft_model)
    torch.testing.assert_close(output(backbone), adapted, atol=2e-5, rtol=1e-4)
    assert list(backbone.network.state_dict()) == names
    assert not torch.allclose(output(backbone), output(make()), atol=1e-3)


def test_the_split_layer_equals_pefts_own_layers(add: Add) -> None:
    """Values and gradients: OFT turns the input of q and v, so that no product for all three may stand in for theirs."""
    backbone = make()
    peft_model = add(backbone)
    moved(peft_model)
    backbone.eval()
    split = next(m for m in backbone.network.modules() if isinstance(m, SplitQKV))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    direction = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(4))
    trained = [p for p in split.parameters() if p.requires_grad]
    found = []
    for one_by_one in (False, True):
        y = torch.cat([split.q(x), split.k(x), split.v(x)], dim=-1) if one_by_one else split(x)
        found.append((y, *torch.autograd.grad((y * direction).sum(), [x, *trained])))
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def qkv(backbone: Backbone) -> Tensor:
    return backbone.network.get_submodule("blocks.0.attn.qkv").weight.detach().clone()


def test_oft_turns_the_input_and_keeps_angles() -> None:
    backbone = make()
    before = qkv(backbone)
    peft_model = add_oft(backbone, READOUT, OftConfig(block_size=8))
    moved(peft_model, 0.3)
    merge_lora(backbone, peft_model)
    after = qkv(backbone)
    assert torch.equal(after[32:64], before[32:64])  # k
    for part in (slice(0, 32), slice(64, 96)):
        assert (after[part] - before[part]).abs().max() > 1e-3
        torch.testing.assert_close(after[part] @ after[part].T, before[part] @ before[part].T, atol=1e-6, rtol=1e-4)


def test_osf_leaves_the_largest_directions() -> None:
    """With plain gradient steps the trained part stays orthogonal to the left and right vectors that are kept."""
    backbone = make()
    with torch.no_grad():  # the singular values of a small random weight hardly differ
        backbone.network.get_submodule("blocks.0.attn.qkv").weight.normal_()
    before = qkv(backbone)[:32]
    peft_model = add_osf(backbone, READOUT, OsfConfig(kept=0.25))
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        x = output(backbone)
        (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        optimizer.step()
    merge_lora(backbone, peft_model)
    moved_by = qkv(backbone)[:32] - before
    u, _, vt = torch.linalg.svd(before)
    assert moved_by.abs().max() > 1e-4
    assert (u[:, :8].T @ moved_by).abs().max() < 1e-3 * moved_by.norm()
    assert (moved_by @ vt[:8].T).abs().max() < 1e-3 * moved_by.norm()


@pytest.mark.parametrize("size", [4, 5, 32])
def test_block_sizes_are_lowered_to_a_divisor_without_a_word(size: int) -> None:
    backbone = make()
    peft_model = add_oft(backbone, READOUT, OftConfig(block_size=size))
    layer = backbone.network.get_submodule("blocks.0.attn.qkv.q")
    assert layer.oft_block_size["default"] == {4: 4, 5: 4, 32: 32}[size]
    assert len([p for p in peft_model.parameters() if p.requires_grad]) == 6


@pytest.mark.parametrize(("add_one", "name"), [(add_oft, "OFT"), (add_osf, "OSF")])
def test_nothing_to_adapt_is_one_sentence(add_one: Callable[..., PeftModel], name: str) -> None:
    backbone = load_backbone("test_resnet", weights="random", size=64)
    config = OftConfig() if name == "OFT" else OsfConfig()
    with pytest.raises(UserError, match=f"^{name} found nothing to adapt.*{name.lower()}.targets"):
        add_one(backbone, Readout(blocks=(2,)), config)


def test_intruders_are_reduced_and_the_adapter_stays_one() -> None:
    backbone = make()
    peft_model = add_lora(backbone, READOUT, LoraConfig(rank=2, alpha=4))
    moved(peft_model, 0.5)
    name = "blocks.0.attn.qkv.q"
    layer = backbone.network.get_submodule(name)
    base, before = layer.get_base_layer().weight.detach().clone(), layer.get_delta_weight("default").detach().clone()

    def intruders(delta: Tensor) -> Tensor:
        """Largest cosine of each of the ten largest left singular vectors with any of the pretrained weight's."""
        of_base, of_tuned = torch.linalg.svd(base)[0], torch.linalg.svd(base + delta)[0]
        return (of_tuned.T @ of_base).abs().max(dim=1).values[:10]

    said = reduce_intruders(peft_model, IntruderConfig(threshold=0.7, kept=0.0))
    after = layer.get_delta_weight("default").detach()
    assert any(f"{name}: Intruders:" in line for line in said)
    assert (intruders(before) < 0.7).sum() > 0
    largest = torch.linalg.svd(base + before)
    shown = largest.U[:, 0] @ (base + before) @ largest.Vh[0]
    assert (largest.U[:, 0] @ (base + after) @ largest.Vh[0]).abs() < 0.5 * shown
    assert peft_model.active_adapters == ["default"]
    assert not any("reduced" in n for n, _ in peft_model.named_parameters())
    adapted = output(backbone).detach()
    merge_lora(backbone, peft_model)
    torch.testing.assert_close(output(backbone), adapted, atol=2e-5, rtol=1e-4)


def test_intruders_that_are_kept_whole_change_nothing() -> None:
    backbone = make()
    peft_model = add_lora(backbone, READOUT, LoraConfig(rank=2))
    moved(peft_model, 0.3)
    before = output(backbone).detach()
    reduce_intruders(peft_model, IntruderConfig(threshold=1.0, kept=1.0))
    torch.testing.assert_close(output(backbone), before, atol=1e-5, rtol=1e-4)


def test_intruders_are_for_plain_lora() -> None:
    with pytest.raises(ValidationError, match="plain LoRA alone"):
        LoraConfig(variant="dora", intruders=IntruderConfig())
