from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from keepsight.backbones import load_backbone
from keepsight.backbones.huggingface import TransformersBackbone
from keepsight.backbones.huggingface_loading import preprocessing_of
from keepsight.core import UserError

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
PROCESSOR = {
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "size": {"shortest_edge": 80},
    "crop_size": {"height": 64, "width": 64},
    "do_center_crop": True,
    "resample": 3,
}


def saved(folder: Path, kind: str, **settings: Any) -> Any:
    """A small model with noise in every weight, saved by transformers itself; the model."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **(SMALL | settings))
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("vit", 1), ("deit", 2), ("dinov2", 1), ("dinov2_with_registers", 5), ("clip_vision_model", 1), ("dinov3_vit", 1)],
)
def test_tokens_are_those_of_transformers(kind: str, prefix: int, tmp_path: Path) -> None:
    model = saved(tmp_path, kind)
    backbone = load_backbone(tmp_path)
    for size in (64, 96):  # of training, and interpolated
        with torch.no_grad():
            first, last = backbone(images(size), (1, 2))
            expected = model(images(size), interpolate_pos_encoding=True, output_hidden_states=True)
        torch.testing.assert_close(first.patches, expected.hidden_states[1][:, prefix:])
        torch.testing.assert_close(first.cls, expected.hidden_states[1][:, 0])
        tokens = expected.last_hidden_state
        if kind == "clip_vision_model":  # its final norm is for the pooled token only; we give all tokens with it
            tokens = model.post_layernorm(tokens)
            torch.testing.assert_close(last.cls, expected.pooler_output)
        torch.testing.assert_close(last.patches, tokens[:, prefix:])
        torch.testing.assert_close(last.cls, tokens[:, 0])
        assert last.grid == (size // 16, size // 16)


def test_masked_autoencoder_sees_every_patch_in_its_place(tmp_path: Path) -> None:
    model = saved(tmp_path, "vit_mae")
    backbone = load_backbone(tmp_path)
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        (features,) = backbone(images(), (2,))
        expected = model(images())  # in an order of its own, which it says
        order = expected.ids_restore[:, :, None].expand(-1, -1, 32)
        tokens = expected.last_hidden_state[:, 1:].gather(1, order)
    torch.testing.assert_close(features.patches, tokens)
    torch.testing.assert_close(features.cls, expected.last_hidden_state[:, 0])


@pytest.mark.parametrize("kind", ["siglip_vision_model", "convnext", "convnextv2"])
def test_own_pooling_without_a_class_token(kind: str, tmp_path: Path) -> None:
    cnn = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    torch.manual_seed(0)
    if kind.startswith("convnext"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **cnn)).eval()
        model.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    else:
        model = saved(tmp_path, kind)
    backbone = load_backbone(tmp_path)
    with torch.no_grad():
        first, last = backbone(images(), (1, backbone.depth))
        expected = model(images())
    torch.testing.assert_close(last.cls, expected.pooler_output)
    torch.testing.assert_close(first.cls, first.patches.mean(1))
    tokens = expected.last_hidden_state
    torch.testing.assert_close(last.patches, tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens)


@pytest.mark.parametrize("pools_the_mean", [True, False])
def test_beit_has_its_norm_behind_the_pooling(pools_the_mean: bool, tmp_path: Path) -> None:
    model = saved(tmp_path, "beit", use_mean_pooling=pools_the_mean, use_relative_position_bias=True)
    backbone = load_backbone(tmp_path)
    norm = model.pooler.layernorm if pools_the_mean else torch.nn.Identity()
    with torch.no_grad():
        (features,) = backbone(images(), (2,))
        tokens = norm(model(images()).last_hidden_state)
    torch.testing.assert_close(features.cls, tokens[:, 0])
    torch.testing.assert_close(features.patches, tokens[:, 1:])


def test_the_image_tower_of_a_whole_clip(tmp_path: Path) -> None:
    text = SMALL | {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(vision_config=SMALL, text_config=text, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone, TransformersBackbone)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images(), (2,))[0].cls, model.vision_model(images()).pooler_output)


def test_old_and_wrapped_names_and_parts_are_read(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    stored = load_file(tmp_path / "model.safetensors")
    assert any(".query." in name for name in stored)  # the names on the hub, which are not those of the module any more
    expected = load_backbone(tmp_path).weights_hash()

    torch.save({"state_dict": {f"module.vit.{n}": t.half().float() for n, t in stored.items()}}, tmp_path / "w.pth")
    save_file({n: t.half().float() for n, t in stored.items()}, tmp_path / "half.safetensors")
    rounded = load_backbone(tmp_path, weights=str(tmp_path / "half.safetensors")).weights_hash()
    assert load_backbone(tmp_path, weights=str(tmp_path / "w.pth")).weights_hash() == rounded != expected

    names = sorted(stored)
    (tmp_path / "model.safetensors").unlink()
    index = {}
    for number, part in enumerate((names[:10], names[10:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: stored[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert load_backbone(tmp_path).weights_hash() == expected
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"name a file model-00002-of-00002.safetensors that is not there"):
        load_backbone(tmp_path)


def test_less_than_all_is_an_error_unless_allowed(tmp_path: Path) -> None:
    saved(tmp_path, "dinov2")
    stored = load_file(tmp_path / "model.safetensors")
    part = {n: t for n, t in stored.items() if ".1." not in n} | {"layernorm.weight": torch.ones(7)}
    save_file(part, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"fill only \d+ of \d+ tensors.*encoder.layer.1.*backbone.allow_partial=true"):
        load_backbone(tmp_path)
    backbone = load_backbone(tmp_path, allow_partial=True)
    assert torch.equal(backbone.network.state_dict()["layernorm.bias"], stored["layernorm.bias"])
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"fill only 0 of"):
        load_backbone(tmp_path, allow_partial=True)


def test_random_weights_are_always_the_same_and_nobodys_random_state_is_touched(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = (load_backbone(tmp_path, weights="random").weights_hash() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert first == second != load_backbone(tmp_path).weights_hash()


def test_preprocessing_is_what_the_directory_says(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    found = load_backbone(tmp_path, weights="random").preprocessing
    assert (found.size, found.mean, found.std) == (64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.interpolation, found.fit, found.crop_fraction) == ("bicubic", "crop", 0.8)
    squashed = load_backbone(tmp_path, weights="random", size=96, fit="squash").preprocessing
    assert (squashed.size, squashed.fit) == (96, "squash")


def test_kinds_of_preprocessing() -> None:
    plain = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert preprocessing_of(plain | {"size": {"height": 32, "width": 32}}, "x").fit == "squash"
    convnext = preprocessing_of(plain | {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, "x")
    assert (convnext.size, convnext.fit, convnext.crop_fraction) == (224, "crop", 0.875)
    # pixel / 127.5 - 1 is (pixel / 255 - 0.5) / 0.5
    scaled = {"size": 32, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    found = preprocessing_of(scaled, "x")
    assert found.mean == pytest.approx((0.5,) * 3)
    assert found.std == pytest.approx((0.5,) * 3)
    for wrong in ({"size": {"height": 32, "width": 16}}, {"size": 32, "resample": 9}, {}):
        with pytest.raises(UserError, match="is not understood"):
            preprocessing_of(plain | wrong, "x")


def test_bad_directories_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "vit")
    with pytest.raises(UserError, match=r"not a multiple of the patch size 16 .*use 64 or 80"):
        load_backbone(tmp_path, size=70)
    with pytest.raises(UserError, match="takes no timm_args"):
        load_backbone(tmp_path, timm_args={"depth": 1})
    description = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "bert"}, "is a model of type bert, which is not supported"),
        ({"hidden_size": 33}, "fill only"),
        ({"hidden_size": "wide"}, "describes no model that can be built"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(description | change))
        with pytest.raises(UserError, match=message):
            load_backbone(tmp_path)
    # code in a repository is neither fetched nor run: the model type decides
    (tmp_path / "config.json").write_text(json.dumps(description | {"auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit")
    assert load_backbone(tmp_path).depth == 2
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config.json"):
        load_backbone(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'keepsight\[transformers\]'"):
        load_backbone(tmp_path)


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "vit")
    expected = load_backbone(tmp_path).weights_hash()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=r"^some/vit cannot be fetched .*\(ConnectionError\).*a downloaded copy"):
        load_backbone("hf:some/vit")

    siblings = [SimpleNamespace(rfilename=path.name) for path in tmp_path.iterdir()]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _repository, name: str(tmp_path / name))
    backbone = load_backbone("hf:some/vit")
    assert (backbone.name, backbone.weights_hash()) == ("hf:some/vit", expected)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    siblings.clear()
    with pytest.raises(UserError, match=r"some/vit on the model hub holds no config.json"):
        load_backbone("hf:some/vit")

    # What the hub's cache holds is used without asking the hub.
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    held = {path.name: str(path) for path in tmp_path.iterdir()}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _repository, name: held.get(name))
    assert load_backbone("hf:some/vit").weights_hash() == expected
