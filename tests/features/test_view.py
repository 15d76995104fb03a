"""A backbone's view: the same numbers as the backbone itself, the same bits whatever is asked first, kept and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import TinyBackbone
from keepsight.backbones.load import load_backbone
from keepsight.core import ImageList, Readout
from keepsight.core.features import feature_map
from keepsight.data.transforms import load_batch
from keepsight.features import view as view_module
from keepsight.features.cache import FeatureCache
from keepsight.features.view import BackboneView


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


def view_of(images: ImageList, folder: Path, backbone: TinyBackbone | None = None) -> BackboneView:
    backbone = backbone or TinyBackbone()
    cache = FeatureCache(backbone.weights_hash(), backbone.preprocessing, root=folder / "features")
    return BackboneView(backbone, images, folder / "maps", cache=cache)


def test_vectors_and_maps_are_the_backbones_own(noise_images: ImageList, tmp_path: Path) -> None:
    backbone, rows = TinyBackbone(), np.array([3, 0, 3, 39])
    view = view_of(noise_images, tmp_path, backbone)
    with torch.no_grad():
        one, two = backbone(load_batch(noise_images, rows, backbone.preprocessing), (1, 2))
    readout = Readout.parse("1,last:cls+mean")
    assert torch.allclose(view.vectors(rows, readout), readout.read((one, two)), atol=1e-5)
    maps = view.maps(rows, (1, -1))
    assert maps.dtype == torch.float32
    assert torch.allclose(maps, feature_map((one, two)), atol=2e-3)  # half precision
    assert torch.equal(maps, maps.half().float())
    assert tuple(view.maps(np.empty(0, np.int64), (1, -1)).shape) == (0, *maps.shape[1:])
    assert torch.equal(view.maps(rows, (2,)), view.maps(rows, (-1,)))


def test_the_same_bits_whatever_is_asked_first(
    noise_images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "CHUNK", 16)
    first, second = (view_of(noise_images, tmp_path / name) for name in "ab")
    every, readout = np.arange(40), Readout.parse("last:mean")
    whole = first.maps(every, (1, 2)), first.vectors(every, readout)
    for row in (17, 4, 39):
        assert torch.equal(second.maps(np.array([row]), (1, 2))[0], whole[0][row])
        assert torch.equal(second.vectors(np.array([row]), readout)[0], whole[1][row])
    assert torch.equal(second.maps(every, (1, 2)), whole[0])


def test_another_backbone_has_other_maps_in_the_same_folder(noise_images: ImageList, tmp_path: Path) -> None:
    rows = np.arange(5)
    one, other = view_of(noise_images, tmp_path), view_of(noise_images, tmp_path, TinyBackbone(seed=1))
    assert not torch.equal(one.maps(rows, (2,)), other.maps(rows, (2,)))
    assert not torch.equal(one.vectors(rows, Readout()), other.vectors(rows, Readout()))


def test_what_was_written_before_a_kill_is_used_again(
    noise_images: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "CHUNK", 16)
    killed, real = TinyBackbone(), view_module.write_maps
    written: list[int] = []

    def dies(file, backbone, blocks, indices, load):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(int(indices[0]))
        real(file, backbone, blocks, indices, load)

    monkeypatch.setattr(view_module, "write_maps", dies)
    with pytest.raises(KeyboardInterrupt):
        view_of(noise_images, tmp_path, killed).maps(np.arange(40), (2,))
    monkeypatch.setattr(view_module, "write_maps", real)
    backbone = TinyBackbone()
    maps = view_of(noise_images, tmp_path, backbone).maps(np.arange(40), (2,))
    assert written == [0, 16]
    assert backbone.block_calls == [1, 2]  # one batch: that of the third file
    assert torch.equal(maps, view_of(noise_images, tmp_path / "other").maps(np.arange(40), (2,)))


def test_a_backbone_without_a_text_tower_has_no_embeddings(noise_images: ImageList, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny has no space"):
        view_of(noise_images, tmp_path).embeddings(np.arange(2))


def test_embeddings_are_open_clips_own(noise_images: ImageList, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(3)
    vision = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"width": 32, "heads": 2, "layers": 2, "context_length": 12}
    network = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    (tmp_path / "clip").mkdir()
    described = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(described))
    save_file(network.state_dict(), tmp_path / "clip" / "open_clip_model.safetensors")
    backbone, rows = load_backbone(str(tmp_path / "clip")), np.array([7, 2])
    view = BackboneView(backbone, noise_images, tmp_path / "maps")
    with torch.no_grad():
        expected = network.encode_image(load_batch(noise_images, rows, backbone.preprocessing), normalize=True)
    found = view.embeddings(rows)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not found.is_inference()


def test_attention_rows_sum_to_one(noise_images: ImageList, tmp_path: Path) -> None:
    backbone = load_backbone("test_vit", weights="random", size=32)
    view = BackboneView(backbone, noise_images, tmp_path / "maps")
    found = view.attention(np.array([1, 5, 5]), (1, -1))
    assert found.shape[:2] == (3, 2)
    assert torch.allclose(found.sum(dim=-1), torch.ones(found.shape[:-1]), atol=1e-5)
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
