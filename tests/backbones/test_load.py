from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from keepsight.backbones import BackboneConfig, TimmBackbone, list_backbones, load_backbone
from keepsight.backbones.timm_loading import preprocessing_of
from keepsight.core import UserError

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def small_vit(**options: Any) -> Any:
    torch.manual_seed(5)
    return timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, **(SMALL | options))


def load_small(path: Path | str, **options: Any) -> TimmBackbone:
    return load_backbone(
        path, **({"architecture": "vit_small_patch14_dinov2", "size": 56, "timm_args": SMALL} | options)
    )


def assert_filled(backbone: TimmBackbone, weights: dict[str, Tensor]) -> None:
    found = backbone.network.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(small_vit(img_size=56).state_dict())


def with_prefix(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda w: {prefix + name: t for name, t in w.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": dict,
    "module": with_prefix("module."),
    "nested": lambda w: {"epoch": 3, "args": argparse.Namespace(lr=0.1), "model": w, "optimizer": {"state": {}}},
    "lightning": lambda w: {"state_dict": with_prefix("model.")(w), "hyper_parameters": {}},
    "compiled ddp": with_prefix("module._orig_mod."),
    "dino": lambda w: {
        "student": {f"module.backbone.{n}": torch.zeros_like(t) for n, t in w.items()},
        "teacher": with_prefix("module.backbone.")(w),
    },
    "with classifier": lambda w: w | {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)},
    "two towers": lambda w: with_prefix("visual.trunk.")(w) | {"text.embedding": torch.ones(5, 5)},
    "own": with_prefix("network."),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_any_wrapping(wrapping: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](weights), tmp_path / "weights.pth")
    assert_filled(load_small(tmp_path / "weights.pth"), weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_every_kind_of_file_and_a_directory_with_one(suffix: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    assert_filled(load_small(path), weights)
    assert_filled(load_small(tmp_path), weights)
    by_name = load_backbone("vit_small_patch14_dinov2", weights=str(path), size=56, timm_args=SMALL)
    assert_filled(by_name, weights)


def test_half_precision_is_widened(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({n: t.bfloat16() for n, t in weights.items()}, tmp_path / "w.safetensors")
    backbone = load_small(tmp_path / "w.safetensors")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_position_grid_is_resampled_to_the_size(tmp_path: Path) -> None:
    source = small_vit(img_size=112)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone: Any = load_small(tmp_path / "w.safetensors", size=56)
    assert backbone.network.pos_embed.shape[1] == 1 + 16
    # The mean survives a resampling to half the size; random values would not have it.
    before, after = source.pos_embed[0, 1:].mean(0), backbone.network.pos_embed[0, 1:].mean(0)
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)
    assert torch.equal(backbone.network.pos_embed[:, 0], source.pos_embed[:, 0])


def test_official_dinov2_format(weights: dict[str, Tensor], tmp_path: Path) -> None:
    official = weights | {"mask_token": torch.zeros(1, 32)}
    torch.save(official, tmp_path / "dinov2_vits14_pretrain.pth")
    assert_filled(load_small(tmp_path / "dinov2_vits14_pretrain.pth"), weights)


def test_official_radio_format_brings_its_summary_tokens(tmp_path: Path) -> None:
    torch.manual_seed(3)
    args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "init_values": None}
    network: Any = timm.create_model("vit_huge_patch16_radio_v4", pretrained=False, img_size=64, num_classes=0, **args)
    own = network.state_dict()
    prefix = "radio_model.model."
    official = {prefix + n: t for n, t in own.items() if n.startswith("blocks.")}
    official[f"{prefix}patch_generator.embedder.weight"] = own["patch_embed.proj.weight"].flatten(1)
    official[f"{prefix}patch_generator.pos_embed"] = own["pos_embed"]
    official[f"{prefix}patch_generator.cls_token.token"] = torch.cat([own["cls_token"], own["reg_token"]], 1)[0]
    official["radio_model.summary_idxs"] = torch.tensor([0, 1])
    save_file({n: t.contiguous() for n, t in official.items()}, tmp_path / "model.safetensors")

    backbone = load_backbone(tmp_path, architecture="vit_huge_patch16_radio_v4", size=64, timm_args=args)
    images = torch.randn(2, 3, 64, 64)
    network.patch_embed.proj.bias.data.zero_()
    with torch.no_grad():
        (features,) = backbone(images, (1,))
        tokens = network.eval().forward_features(images)
    torch.testing.assert_close(features.cls, tokens[:, :2].flatten(1))
    torch.testing.assert_close(features.patches, tokens[:, 10:])


def test_directory_as_timm_saves_models(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    description = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": SMALL,
        "pretrained_cfg": {"input_size": [3, 56, 56], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "crop_pct": 0.5},
    }
    (tmp_path / "config.json").write_text(json.dumps(description))
    backbone = load_backbone(tmp_path)
    assert_filled(backbone, weights)
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (backbone.preprocessing.size, backbone.preprocessing.crop_fraction) == (56, 0.5)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_backbone(tmp_path)


def test_less_than_all_is_an_error_unless_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    part = {n: t for n, t in weights.items() if not n.startswith("blocks.1.")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"fill only 20 of 34 tensors.*blocks.1.*backbone.allow_partial=true"):
        load_small(tmp_path / "part.safetensors")
    backbone = load_small(tmp_path / "part.safetensors", allow_partial=True)
    assert torch.equal(backbone.network.state_dict()["blocks.0.mlp.fc1.weight"], weights["blocks.0.mlp.fc1.weight"])


def test_nothing_matched_is_an_error_even_if_partial_is_allowed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"fill only 0 of 34 tensors.*: check the architecture\.$"):
        load_small(tmp_path / "other.safetensors", allow_partial=True)


def test_a_wrong_shape_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights | {"norm.weight": torch.ones(7)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"norm.weight \(shape \[7\] where \[32\] is expected\)"):
        load_small(tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    Path("evil.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    Path("newer.bin").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.bin"):
        with pytest.raises(UserError, match=rf"{name} hold pickled code, which keepsight never runs"):
            load_small(name)
    with pytest.raises(UserError):
        load_small("newer.bin")
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_that_are_no_weights(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_text("<html>not found</html>")
    with pytest.raises(UserError, match="damaged or not a weight file"):
        load_small(path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="are a list: expected a state dict"):
        load_small(tmp_path / "list.pth")


def test_paths_that_do_not_do(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="no weight file or directory"):
        load_small(tmp_path / "missing.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load_small(tmp_path)
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(UserError, match="unknown kind"):
        load_small(tmp_path / "weights.txt")
    for name in "ab":
        save_file(weights, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"holds 2 .safetensors files"):
        load_small(tmp_path)
    with pytest.raises(UserError, match="add architecture=NAME"):
        load_backbone(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("vit_smal_patch14_dinov2", "did you mean vit_small_patch14_dinov2"),
        ("vit_s14_imgfokus", "did you mean vit_s14_imgfocus"),
        ("vit_small_patch14_dinov2.lvd143m", r"did you mean vit_small_patch14_dinov2\.lvd142m"),
        ("qqqqqq", "'keepsight backbones' lists"),
    ],
)
def test_unknown_names_come_with_suggestions(name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=suggestion):
        load_backbone(name)


def test_unusable_arguments_are_named() -> None:
    with pytest.raises(UserError, match=r"test_vit cannot be built with .*depht"):
        load_backbone("test_vit", weights="random", timm_args={"depht": 2})
    with pytest.raises(UserError, match=r"not a multiple of the patch size 16 .*use 64 or 80"):
        load_backbone("test_vit", weights="random", size=70)
    with pytest.raises(UserError, match="architecture=resnet18 contradicts it"):
        load_backbone("test_vit", weights="random", architecture="resnet18")
    with pytest.raises(UserError, match="does not describe an RGB input"):
        preprocessing_of({"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}, "gray")


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(
        UserError, match=r"cannot be fetched .*\(ConnectionError\): give a local weight file .*vit_s14_imgfocus"
    ):
        load_backbone("test_vit")


def test_hub_weights_go_through_the_same_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    backbone = load_backbone("test_vit.r160_in1k")
    assert_filled(backbone, {n: t for n, t in state.items() if not n.startswith("head.")})

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", lambda *_, **__: {"norm.weight": state["norm.weight"]})
    with pytest.raises(UserError, match="fill only 1 of"):
        load_backbone("test_vit")

    # What the hub's cache holds is used without asking the hub.
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    assert load_backbone("test_vit").weights_hash() == backbone.weights_hash()


def test_no_weights_published(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = timm.get_pretrained_cfg("test_vit")
    cfg.hf_hub_id = cfg.url = None
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_: cfg)
    with pytest.raises(UserError, match="No pretrained weights are published for test_vit"):
        load_backbone("test_vit")


def test_random_weights_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", None)
    backbone = load_backbone(BackboneConfig(name="test_resnet", weights="random"), fit="squash", size=64)
    assert (backbone.preprocessing.size, backbone.preprocessing.fit) == (64, "squash")
    assert backbone.preprocessing.interpolation == "bilinear"
    assert not backbone.training


def test_preprocessing_comes_from_timm() -> None:
    clip = load_backbone("vit_base_patch32_clip_224.openai", weights="random", timm_args=SMALL).preprocessing
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (clip.size, clip.interpolation) == (224, "bicubic")


def test_list_backbones() -> None:
    entries = {e.name: e for e in list_backbones("*dinov2*")}
    assert "vit_small_patch14_dinov2" in entries
    assert "lvd142m" in entries["vit_small_patch14_dinov2"].description
    assert "vit_s14_imgfocus" not in entries  # it is not DINOv2 and is never called so
    packaged = [e for e in list_backbones() if e.source == "packaged"]
    assert [(e.name, e.size, e.licence) for e in packaged] == [
        ("vit_s14_imgfocus", 224, "MIT"),
        ("efficientnet_lite0", 224, "Apache-2.0"),
    ]
    assert list_backbones("no-such-thing") == []
