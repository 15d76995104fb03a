"""The exported folder, read back by plain timm and by load_backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from keepsight.adapters.adaptformer import AdaptFormerConfig
from keepsight.adapters.kept import KeptAdapters, adapter_tensors
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, UserError
from keepsight.export.model import TunedModel
from keepsight.export.timm_layout import export_timm
from keepsight.heads.linear import LinearHead


def model(name: str, readout: str, size: int) -> TunedModel:
    torch.manual_seed(0)
    backbone = load_backbone(name, weights="random", size=size)
    resolved = Readout.parse(readout).resolved(backbone.depth)
    with torch.no_grad():
        width = resolved.read(backbone(torch.zeros(1, 3, size, size), resolved.blocks)).shape[1]
    head = LinearHead(features=width, classes=3)
    with torch.no_grad():
        head.weight_KF.normal_()
        head.bias_K.normal_()
        head.mean_F.normal_()
        head.scale_F.uniform_(0.5, 2)
    return TunedModel("finetune-full", backbone, Readout.parse(readout), head, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("name", "readout", "with_head"),
    [
        ("test_vit", "last:cls", True),
        ("test_vit", "last:mean", False),
        ("test_vit", "3:cls", False),
        ("test_vit2", "last:cls", False),  # its own classifier sees the mean of the patches
        ("test_convnext", "last:cls", True),
        ("test_efficientnet", "2:mean", False),
    ],
)
def test_plain_timm_reads_it_back(name: str, readout: str, with_head: bool, tmp_path: Path) -> None:
    tuned = model(name, readout, 64)
    said = export_timm(tuned, tmp_path / "out")
    assert ("classifier (3 classes)" in said) == with_head
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert config.get("label_names") == (["a", "b", "c"] if with_head else None)

    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    last = tuned.readout.resolved(tuned.backbone.depth)
    with torch.no_grad():
        assert torch.equal(plain.forward_features(images), tuned.backbone.network.forward_features(images))
        if with_head:
            expected = tuned.head(last.read(tuned.backbone(images, last.blocks)))
            torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-3)

    back = load_backbone(tmp_path / "out")
    assert back.preprocessing == tuned.backbone.preprocessing
    assert back.weights_hash() == tuned.backbone.weights_hash()


def test_a_checkpoint_path_works_too(tmp_path: Path) -> None:
    tuned = model("test_vit", "2:mean", 32)
    export_timm(tuned, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    plain = timm.create_model("test_vit", num_classes=0, img_size=32, checkpoint_path=str(file)).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.forward_features(images), tuned.backbone.network.forward_features(images))
    assert set(load_file(file)) == set(tuned.backbone.network.state_dict())


def test_other_backbones_have_no_timm_layout(tiny_backbone: Backbone, tmp_path: Path) -> None:
    tuned = TunedModel("probe", tiny_backbone, Readout(), LinearHead(features=8, classes=2), ("a", "b"))
    with pytest.raises(UserError, match="not one of timm's"):
        export_timm(tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_that_stay_lie_beside_the_plain_network(tmp_path: Path) -> None:
    tuned = model("test_vit", "last:cls", 64)
    untouched = {name: tensor.clone() for name, tensor in tuned.backbone.network.state_dict().items()}
    kept = KeptAdapters(blocks=(1, 2), adaptformer=AdaptFormerConfig(bottleneck=4))
    kept.add(tuned.backbone)
    said = export_timm(tuned, tmp_path / "out")
    assert "timm's weights alone are not the tuned model" in said
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert plain.state_dict().keys() == untouched.keys()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in plain.state_dict().items())
    adapter = tmp_path / "out" / "adapter"
    assert KeptAdapters.model_validate_json((adapter / "adapter.json").read_text()) == kept
    found, expected = load_file(adapter / "adapter.safetensors"), adapter_tensors(tuned.backbone)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert load_backbone(str(tmp_path / "out")).weights_hash()  # the folder has one weight file to load
