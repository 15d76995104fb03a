"""A tuned backbone on disk: its library's own code reads it strictly, and so does load_backbone."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from conftest import TinyBackbone
from keepsight.adapters.lora import LoraConfig, add_lora, merge_lora
from keepsight.backbones.load import load_backbone
from keepsight.backbones.open_clip_models import OpenClipBackbone
from keepsight.core import Backbone, Preprocessing, Readout, UserError
from keepsight.export.adapter import FusedAdapter, fused_adapter
from keepsight.export.backbone import load_tuned_backbone, save_tuned_backbone

VISION = {"layers": 2, "width": 32, "patch_size": 16, "head_width": 16, "image_size": 32}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


def eva() -> Backbone:
    arguments = {"embed_dim": 32, "num_heads": 2, "depth": 2}
    return load_backbone("eva_giant_patch14_clip_224", weights="random", size=28, fit="squash", timm_args=arguments)


def clip() -> Backbone:
    preprocessing = Preprocessing(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), fit="squash")
    torch.manual_seed(0)
    return OpenClipBackbone(
        name="small", model={"embed_dim": 24, "vision_cfg": VISION}, preprocessing=preprocessing
    ).eval()


def tune(backbone: Backbone) -> FusedAdapter | None:
    peft_model = add_lora(backbone, Readout(blocks=(backbone.depth,)), LoraConfig(rank=2, alpha=1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator))
    adapter = fused_adapter(peft_model)
    merge_lora(backbone, peft_model)
    return adapter


def patches(backbone: Backbone) -> Tensor:
    size = backbone.preprocessing.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return backbone(images, (backbone.depth,))[0].patches


@pytest.mark.parametrize("make", [eva, clip])
def test_load_backbone_gives_it_back(make: type, tmp_path: Path) -> None:
    backbone = make()
    untuned = patches(backbone)
    adapter = tune(backbone)
    folder = tmp_path / "tuned"
    save_tuned_backbone(folder, backbone, adapter, "0.1")
    for loaded in (load_tuned_backbone(folder), load_backbone(str(folder)), load_backbone(folder)):
        assert torch.equal(patches(loaded), patches(backbone))
        assert loaded.preprocessing == backbone.preprocessing
        assert loaded.weights_hash() == backbone.weights_hash()
    assert (patches(backbone) - untuned).abs().max() > 1e-3
    larger = load_backbone(folder, size=2 * backbone.preprocessing.size)
    assert patches(larger).shape[1] == 4 * untuned.shape[1]
    empty = load_backbone(folder, weights="random")
    assert not torch.equal(patches(empty), patches(backbone))


def test_timm_reads_it(tmp_path: Path) -> None:
    backbone = eva()
    before = {name: t.clone() for name, t in backbone.network.state_dict().items()}
    save_tuned_backbone(tmp_path / "tuned", backbone, tune(backbone), "0.1")
    arguments = {"num_classes": 0, "img_size": 28, "embed_dim": 32, "num_heads": 2, "depth": 2}
    theirs = timm.create_model("eva_giant_patch14_clip_224", pretrained=False, **arguments).eval()
    theirs.load_state_dict(load_file(tmp_path / "tuned" / "model.safetensors"), strict=True)
    images = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        expected = backbone.network(images)
        torch.testing.assert_close(theirs(images), expected)
        named = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True).eval()
        torch.testing.assert_close(named(images), expected)
        # The untuned network with PEFT's adapter around it is the same once more.
        theirs.load_state_dict(before, strict=True)
        for block in theirs.blocks:
            block.attn.qkv_bias_separate = True
        adapted = PeftModel.from_pretrained(theirs, str(tmp_path / "tuned" / "adapter")).eval()
        torch.testing.assert_close(adapted(images), expected, atol=1e-4, rtol=1e-4)


def test_open_clip_reads_it(tmp_path: Path) -> None:
    backbone = clip()
    assert isinstance(backbone, OpenClipBackbone)
    save_tuned_backbone(tmp_path / "tuned", backbone, tune(backbone), "0.1")
    theirs = open_clip.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT).eval()
    theirs.visual.load_state_dict(load_file(tmp_path / "tuned" / "model.safetensors"), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        (features,) = backbone(images, (2,))
        torch.testing.assert_close(backbone.project(features.cls), theirs.encode_image(images), atol=1e-5, rtol=1e-5)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither timm's nor open_clip's"):
        save_tuned_backbone(tmp_path / "tuned", TinyBackbone(), None, "0.1")
    split = eva()
    add_lora(split, Readout(blocks=(2,)), LoraConfig())
    with pytest.raises(ValueError, match="merge the adapters first"):
        save_tuned_backbone(tmp_path / "tuned", split, None, "0.1")
    with pytest.raises(UserError, match="no tuned backbone"):
        load_tuned_backbone(tmp_path)
    save_tuned_backbone(tmp_path / "tuned", eva(), None, "0.1")
    with pytest.raises(UserError, match="leave out timm_args"):
        load_backbone(tmp_path / "tuned", timm_args={"depth": 1})
    (tmp_path / "tuned" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_tuned_backbone(tmp_path / "tuned")
    (tmp_path / "tuned" / "keepsight.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe a tuned backbone"):
        load_tuned_backbone(tmp_path / "tuned")
