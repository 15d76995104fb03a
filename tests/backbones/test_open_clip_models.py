from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from keepsight.adapters.lora import LoraConfig, add_lora, merge_lora
from keepsight.backbones import build_backbone, list_backbones, load_backbone
from keepsight.backbones.config import BackboneConfig
from keepsight.backbones.open_clip_models import FusedAttention, OpenClipBackbone
from keepsight.backbones.open_clip_names import describe
from keepsight.core import Readout, UserError

open_clip = pytest.importorskip("open_clip")

VIT = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 16, "image_size": 64}
TEXT = {"context_length": 9, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
TIMM = {"timm_model_name": "test_vit", "image_size": 160}


def clip_model(**vision: Any) -> Any:
    """A small CLIP with noise in every weight."""
    torch.manual_seed(4)
    network = open_clip.CLIP(embed_dim=24, vision_cfg=VIT | vision, text_cfg=TEXT).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def saved(folder: Path, network: Any, **vision: Any) -> Path:
    """A directory as open_clip saves models."""
    description = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": VIT | vision, "text_cfg": TEXT},
        "preprocess_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [1, 1, 1],
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def load(path: Path | str, **options: Any) -> OpenClipBackbone:
    backbone = load_backbone(path, **options)
    assert isinstance(backbone, OpenClipBackbone)
    return backbone


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"ls_init_value": 0.5},
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3, "output_tokens": True},
        TIMM | {"timm_pool": "token", "timm_proj": "linear"},
        TIMM | {"timm_pool": "token", "timm_proj": None},
        TIMM | {"timm_pool": "avg", "timm_proj": "mlp"},
        TIMM | {"timm_pool": "map", "timm_proj": "none"},
        {"timm_model_name": "test_convnext", "image_size": 160, "timm_pool": "", "timm_proj": "linear"},
        {"timm_model_name": "test_convnext", "image_size": 160, "timm_pool": "avg", "timm_proj": None},
    ],
    ids=str,
)
def test_projection_is_open_clips_own_embedding(vision: dict[str, Any], tmp_path: Path) -> None:
    network = clip_model(**vision)
    backbone = load(saved(tmp_path, network, **vision))
    x = images(backbone.preprocessing.size)
    with torch.no_grad():
        (features,) = backbone(x, (backbone.depth,))
        expected = network.visual(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(backbone.project(features.cls), expected, rtol=1e-5, atol=1e-5)
    native = backbone.native_state_dict()
    assert native.keys() == network.visual.state_dict().keys()
    for name, tensor in network.visual.state_dict().items():
        assert torch.equal(native[name], tensor), name


def test_blocks_are_those_of_open_clip(tmp_path: Path) -> None:
    network = clip_model()
    backbone = load(saved(tmp_path, network))
    with torch.no_grad():
        first, last = backbone(images(), (1, 2))
        found = network.visual.forward_intermediates(images(), output_fmt="NLC", output_extra_tokens=True)
        normed = network.visual.ln_post(found["image_intermediates"][1])
    torch.testing.assert_close(first.patches, found["image_intermediates"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.cls, found["image_intermediates_prefix"][0][:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.patches, normed, rtol=1e-5, atol=1e-5)
    assert (backbone.preprocessing.mean, backbone.preprocessing.fit) == ((0.1, 0.2, 0.3), "squash")


@pytest.mark.parametrize("bias", [True, False])
def test_fused_attention_is_the_same_map(bias: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True).eval()
    if bias:
        nn.init.normal_(attention.in_proj_bias)
    x, mask = torch.randn(2, 7, 32), torch.full((7, 7), float("-inf")).triu(1)
    expected, masked = (attention(x, x, x, need_weights=False, attn_mask=m)[0] for m in (None, mask))
    fused = FusedAttention(attention)
    torch.testing.assert_close(fused(x, x, x)[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(x, x, x, attn_mask=mask)[0], masked, rtol=1e-5, atol=1e-5)


def test_merged_lora_is_open_clips_model_again(tmp_path: Path) -> None:
    network = clip_model()
    backbone = load(saved(tmp_path, network))
    adapted = add_lora(backbone, Readout(blocks=(2,)), LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
        (tuned,) = backbone(images(), (2,))
    merge_lora(backbone, adapted)
    network.visual.load_state_dict(backbone.native_state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network.visual(images()), backbone.project(tuned.cls), rtol=1e-4, atol=1e-4)
    rebuilt = build_backbone(backbone.spec())
    rebuilt.network.load_state_dict(backbone.network.state_dict())
    assert rebuilt.weights_hash() == backbone.weights_hash()


def test_weights_of_both_towers_of_one_tower_and_of_wrappers(tmp_path: Path) -> None:
    network = clip_model()
    expected = load(saved(tmp_path, network)).weights_hash()
    alone = {name: tensor.clone() for name, tensor in network.visual.state_dict().items()}
    for number, content in enumerate(
        (
            alone,
            {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}},
            {f"visual.{n}": t for n, t in alone.items()},
        )
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        assert load(tmp_path, weights=str(tmp_path / f"{number}.pt")).weights_hash() == expected


def test_less_than_all_is_an_error_and_the_text_tower_does_not_fill_the_image_tower(tmp_path: Path) -> None:
    network = clip_model()
    saved(tmp_path, network)
    text = {n: t.clone() for n, t in network.state_dict().items() if not n.startswith("visual.")}
    assert "transformer.resblocks.0.attn.in_proj_weight" in text  # of the same name and shape as the image tower's
    save_file(text | {"visual.conv1.weight": network.visual.conv1.weight}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"fill only 1 of \d+ tensors"):
        load(tmp_path)
    backbone = load(tmp_path, allow_partial=True)
    assert torch.equal(backbone.native_state_dict()["conv1.weight"], network.visual.conv1.weight)


@pytest.mark.parametrize(
    ("vision", "name"),
    [({}, "positional_embedding"), (TIMM | {"timm_pool": "token", "timm_proj": "linear"}, "trunk.pos_embed")],
    ids=["own", "timm"],
)
def test_position_grid_is_resampled_to_the_size(vision: dict[str, Any], name: str, tmp_path: Path) -> None:
    network = clip_model(**vision)
    saved(tmp_path, network, **vision)
    backbone = load(tmp_path, size=96)
    with torch.no_grad():
        (features,) = backbone(images(96), (1,))
    assert features.grid == (6, 6)
    before = network.visual.state_dict()[name].reshape(-1, features.cls.shape[1])
    after = backbone.network.state_dict()[name].reshape(-1, features.cls.shape[1])
    assert len(after) == 37
    assert torch.equal(before[0], after[0])
    # A resampling keeps the mean of a smooth grid roughly; here, of noise: far closer than other noise would be.
    assert torch.nn.functional.cosine_similarity(before[1:].mean(0), after[1:].mean(0), dim=0) > 0.8
    with pytest.raises(UserError, match=r"not a multiple of the patch size 16 .*use 64 or 80"):
        load(tmp_path, size=70)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-23", r"no architecture 'ViT-B-23': did you mean ViT-B-32"),
        ("open_clip:ViT-B/32", r"did you mean ViT-B-32"),
        ("open_clip:vit-b-32", r"did you mean ViT-B-32"),
        ("open_clip:ViT-B-32/laion2b", r"no weights 'laion2b' of ViT-B-32: did you mean laion2b_"),
        ("open_clip:qqqqqqqqqqqq", r"'keepsight backbones open_clip:' lists"),
        ("open_clip:ViT-B-32", r"add a tag, such as open_clip:ViT-B-32/openai"),
        ("open_clip:RN50/openai", r"ResNets .* give no features block by block"),
        ("open_clip:", r"no architecture ''"),
    ],
)
def test_names_that_do_not_do(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "CLIP", None)  # no large network is built only to say that its weights are missing
    with pytest.raises(UserError, match=message):
        load_backbone(name)


def test_names_bring_preprocessing_and_activation() -> None:
    openai = describe(BackboneConfig(name="open_clip:ViT-B-32/openai"))
    assert openai.model["quick_gelu"] is True  # these weights were trained with it
    assert describe(BackboneConfig(name="open_clip:ViT-B-32/laion2b_s34b_b79k")).model["quick_gelu"] is False
    assert openai.preprocessing.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    siglip = describe(BackboneConfig(name="open_clip:ViT-B-16-SigLIP")).preprocessing
    assert (siglip.mean, siglip.fit, siglip.size) == ((0.5, 0.5, 0.5), "squash", 224)


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, clip_model())
    expected = load(tmp_path).weights_hash()
    asked: list[str] = []

    def cached(repository: str, name: str) -> str | None:
        asked.append(repository)
        return str(tmp_path / name) if (tmp_path / name).exists() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert load("open_clip:hf-hub:some/clip").weights_hash() == expected
    assert set(asked) == {"some/clip"}

    source = describe(BackboneConfig(name="open_clip:ViT-B-32/laion2b_s34b_b79k"))
    assert source.weights()[0].keys() == clip_model().state_dict().keys()
    assert asked[-1] == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=r"cannot be fetched .*\(ConnectionError\).*a local weight file"):
        source.weights()
    answer = SimpleNamespace(siblings=[SimpleNamespace(rfilename="open_clip_pytorch_model.bin")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: answer)
    torch.save(clip_model().state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _repository, name: str(tmp_path / name))
    assert source.weights()[0].keys() == clip_model().state_dict().keys()


def test_a_file_with_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = clip_model()
    save_file(network.state_dict(), tmp_path / "clip.safetensors")
    small = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: dict(small))
    backbone = load(tmp_path / "clip.safetensors", architecture="open_clip:ViT-B-32")
    assert (
        backbone.weights_hash() == load("open_clip:ViT-B-32", weights=str(tmp_path / "clip.safetensors")).weights_hash()
    )
    with pytest.raises(UserError, match="architecture=open_clip:ViT-B-16 contradicts it"):
        load("open_clip:ViT-B-32", architecture="open_clip:ViT-B-16")
    with pytest.raises(UserError, match="takes no timm_args"):
        load("open_clip:ViT-B-32", weights="random", timm_args={"depth": 2})


def test_list_holds_what_can_be_loaded() -> None:
    entries = {entry.name: entry for entry in list_backbones("open_clip:*")}
    assert {entry.source for entry in entries.values()} == {"open_clip"}
    assert "laion2b_s34b_b79k" in entries["open_clip:ViT-B-32"].description
    assert entries["open_clip:ViT-SO400M-14-SigLIP-384"].size == 384
    assert "open_clip:RN50" not in entries
    assert "open_clip:ViT-B-16-SigLIP" in {entry.name for entry in list_backbones("SigLIP")}


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'keepsight\[open-clip\]'"):
        load_backbone("open_clip:ViT-B-32/openai")
    assert list_backbones("open_clip:*") == []
