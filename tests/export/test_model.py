"""The saved model: predicts the same after loading, on every kind of input, and refuses what is damaged."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keepsight.adapters.adaptformer import AdaptFormerConfig
from keepsight.adapters.blocks import block_adapters, switched_off
from keepsight.adapters.kept import KeptAdapters, kept_adapters
from keepsight.adapters.prompts import VptConfig
from keepsight.backbones.load import load_backbone
from keepsight.core import Readout, UserError
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead


@pytest.fixture(scope="module")
def model() -> TunedModel:
    torch.manual_seed(0)
    backbone = load_backbone("test_vit", weights="random", size=64)
    head = LinearHead(features=128, classes=3)
    with torch.no_grad():
        head.weight_KF.normal_()
    return TunedModel("probe", backbone, Readout.parse("2,3:mean"), head, ("a", "b/../c", "ö\n"))


@pytest.fixture
def saved(model: TunedModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "run" / "model", "0")
    return tmp_path / "run" / "model"


@pytest.fixture
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(3)]


def test_loading_gives_the_same_predictions(model: TunedModel, saved: Path, pictures: list[np.ndarray]) -> None:
    expected = model.predict(np.stack(pictures))
    for path in (saved, saved.parent):
        found = TunedModel.load(path).predict(np.stack(pictures))
        assert np.array_equal(found.probabilities, expected.probabilities)
        assert found.labels == expected.labels
    assert np.allclose(expected.probabilities.sum(1), 1)


@pytest.mark.parametrize(
    "kept",
    [
        KeptAdapters(blocks=(2, 3), adaptformer=AdaptFormerConfig(bottleneck=5, scale=0.3)),
        KeptAdapters(blocks=(1, 2, 3), vpt=VptConfig(tokens=4)),
        KeptAdapters(blocks=(1, 2, 3), vpt=VptConfig(tokens=4, deep=False)),
    ],
    ids=["adaptformer", "vpt", "shallow"],
)
def test_adapters_that_stay_are_there_again_after_loading(
    model: TunedModel, pictures: list[np.ndarray], tmp_path: Path, kept: KeptAdapters
) -> None:
    tuned = dataclasses.replace(model, backbone=copy.deepcopy(model.backbone))
    kept.add(tuned.backbone)
    with torch.no_grad():
        for adapter in block_adapters(tuned.backbone).values():
            for p in adapter.parameters():
                p.normal_()
    tuned.save(tmp_path / "model", "0")
    loaded = TunedModel.load(tmp_path / "model")
    expected, plain = tuned.predict(pictures).probabilities, model.predict(pictures).probabilities
    assert np.array_equal(loaded.predict(pictures).probabilities, expected)
    assert np.abs(expected - plain).max() > 1e-3
    assert kept_adapters(loaded.backbone) == kept
    assert loaded.backbone.spec() == model.backbone.spec()
    assert loaded.backbone.weights_hash() == tuned.backbone.weights_hash() != model.backbone.weights_hash()
    with switched_off(loaded.backbone):
        assert np.array_equal(loaded.predict(pictures).probabilities, plain)
    damage_card(tmp_path / "model", adapters={"blocks": [1], "vpt": {}})
    with pytest.raises(UserError, match="damaged or incomplete"):
        TunedModel.load(tmp_path / "model")


def test_every_kind_of_input_gives_the_same(model: TunedModel, pictures: list[np.ndarray], tmp_path: Path) -> None:
    expected = model.predict(np.stack(pictures)).probabilities
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    kinds = [
        paths,
        [str(p) for p in paths],
        tmp_path,
        str(tmp_path),
        pictures,
        [Image.fromarray(p) for p in pictures],
    ]
    for kind in kinds:
        np.testing.assert_allclose(model.predict(kind).probabilities, expected, atol=1e-6)
    for single in (paths[0], str(paths[0]), Image.open(paths[0]), pictures[0]):
        np.testing.assert_allclose(model.predict(single).probabilities, expected[:1], atol=1e-6)
    grey = pictures[0][:, :, 0]
    assert model.predict(grey).probabilities.shape == (1, 3)


def damage_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "There is no tuned model"),
        (lambda f: (f / "model.json").write_text("{"), "damaged or incomplete"),
        (lambda f: (f / "head.safetensors").unlink(), "damaged or incomplete"),
        (lambda f: (f / "backbone.safetensors").write_bytes(b"12345678" * 9), "damaged or incomplete"),
        (lambda f: damage_card(f, format=99), "format 99"),
        (lambda f: damage_card(f, head="forest"), "forest"),
        (lambda f: damage_card(f, head_shape={"features": 3, "classes": 3}), "damaged or incomplete"),
        (lambda f: damage_card(f, surprise=1), "damaged or incomplete"),
        (lambda f: damage_card(f, adapters={"blocks": [99], "vpt": {}}), "damaged or incomplete"),
    ],
    ids=["missing", "json", "no-head", "weights", "format", "head", "shape", "key", "adapters"],
)
def test_damaged_models_are_one_sentence(saved: Path, damage, message: str) -> None:
    damage(saved)
    with pytest.raises(UserError, match=message) as caught:
        TunedModel.load(saved)
    assert "\n" not in str(caught.value)


def test_nothing_to_predict(model: TunedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        model.predict([])
    with pytest.raises(UserError, match="holds no images"):
        model.predict(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        model.predict(tmp_path / "gone.png")
