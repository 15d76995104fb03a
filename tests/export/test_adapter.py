"""The adapter of split q and v, fused: plain PEFT on the plain timm model gives the logits of the tuned one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from peft import PeftModel

from keepsight.adapters.lora import LoraConfig, add_lora, merge_lora
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError
from keepsight.export.adapter import FusedAdapter, export_adapter, fused_adapter, read_adapter
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead

READOUT = Readout.parse("4,6:cls")


def tuned(config: LoraConfig) -> tuple[Backbone, TunedModel]:
    """(the backbone before tuning, a model whose LoRA has been moved away from zero and merged)."""
    before = load_backbone("test_vit", weights="random", size=64)
    backbone = copy.deepcopy(before)
    peft_model = add_lora(backbone, READOUT, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    adapter = fused_adapter(peft_model)
    merge_lora(backbone, peft_model)
    head = LinearHead(features=128, classes=3)
    with torch.no_grad():
        head.weight_KF.copy_(torch.randn(3, 128, generator=generator))
    return before, TunedModel("finetune-lora", backbone, READOUT, head, ("a", "b", "c"), adapter)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=4, alpha=6),
        LoraConfig(rank=2, alpha=3, targets=r"qkv\.[qkv]$"),
        LoraConfig(rank=3, alpha=5, targets=r"qkv\.v$|mlp\.fc1$"),
        LoraConfig(rank=3, alpha=5, targets=r"blocks\.[23]\.attn\.qkv\.[qv]$|blocks\.4\.(attn\.proj|mlp\.fc2)$"),
    ],
    ids=["q,v", "q,k,v", "v and mlp", "mixed"],
)
def test_plain_peft_on_plain_timm_gives_the_same_logits(config: LoraConfig, tmp_path: Path) -> None:
    before, model = tuned(config)
    said = export_adapter(model, tmp_path / "adapter")
    assert "PeftModel.from_pretrained" in said

    plain = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64)
    plain.load_state_dict(before.network.state_dict())
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        untuned = before(images, (6,))[0].cls
        expected = model.backbone(images, (6,))[0].cls
        found = adapted(images)
        assert (expected - untuned).abs().max() > 0.05  # the adapter does something
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

        # The two lines that the command prints, and the logits through them.
        wrapped = copy.deepcopy(before)
        PeftModel.from_pretrained(wrapped.network, str(tmp_path / "adapter"))
        logits = model.head(READOUT.read(wrapped.eval()(images, READOUT.blocks)))
        torch.testing.assert_close(
            logits, model.head(READOUT.read(model.backbone(images, READOUT.blocks))), rtol=1e-4, atol=1e-3
        )


def test_the_adapter_keeps_alpha_over_rank_and_is_saved_with_the_model(tmp_path: Path) -> None:
    _, model = tuned(LoraConfig(rank=4, alpha=6))
    assert model.adapter is not None
    assert (model.adapter.rank, model.adapter.alpha) == (8, 12)
    # As a run does it: saved, loaded, saved again.
    model.save(tmp_path / "cell" / "model", "0")
    TunedModel.load(tmp_path / "cell" / "model").save(tmp_path / "run" / "model", "0")
    found = TunedModel.load(tmp_path / "run").adapter
    assert found is not None
    assert found.modules == model.adapter.modules == [f"blocks.{b}.attn.qkv" for b in range(6)]
    assert all(torch.equal(found.tensors[name], t) for name, t in model.adapter.tensors.items())
    settings = json.loads((tmp_path / "run" / "model" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (8, 12, found.modules)


def test_models_without_an_adapter_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    _, model = tuned(LoraConfig(rank=2))
    probe = TunedModel("probe", model.backbone, READOUT, model.head, model.classes)
    with pytest.raises(UserError, match="fitted by probe"):
        export_adapter(probe, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    model.save(tmp_path / "model", "0")
    for damage in (lambda f: f.unlink(), lambda f: f.write_bytes(b"12345678" * 9)):
        damage(tmp_path / "model" / "adapter" / "adapter_model.safetensors")
        with pytest.raises(UserError, match=r"The adapter in .* is damaged"):
            TunedModel.load(tmp_path / "model")
    with pytest.raises(ValueError, match="not a tensor of a LoRA adapter"):
        _ = FusedAdapter(1, 1.0, {"something": torch.zeros(1)}).modules
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_adapter(tmp_path)
