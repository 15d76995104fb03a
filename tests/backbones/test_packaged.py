"""The packaged weights against independent references: ONNX Runtime, and another implementation of EfficientNet-Lite."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import efficientnet_lite_pytorch
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from keepsight.assets import ASSETS, fetch, load_tensors
from keepsight.backbones import TimmBackbone, load_backbone
from keepsight.backbones.packaged import PACKAGED, check_golden, golden_features
from keepsight.backbones.weights import LoadReport
from keepsight.core import UserError


def raw_file(name: str, directory: Path) -> bytes:
    """The file as published."""
    asset = ASSETS[name]
    return fetch._member(asset, fetch._download(asset, directory))


def noise(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_vit_equals_onnx_runtime_at_224_px(tmp_path: Path) -> None:
    graph = onnx.load_from_string(raw_file("vit_s14_imgfocus", tmp_path))
    # /layer.7/Add_1 is the residual sum that ends block 8; /layernorm/Add_1 ends the final norm.
    names = ["/backbone/encoder/layer.7/Add_1_output_0", "/backbone/layernorm/Add_1_output_0"]
    for name in names:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = noise(2, 224)
    expected = session.run(names, {"input_image": images.numpy()})

    with torch.no_grad():
        outputs = load_backbone("vit_s14_imgfocus", size=224)(images, (8, 12))
    for features, tokens in zip(outputs, expected, strict=True):
        found = torch.cat([features.cls[:, None], features.patches], dim=1).numpy()
        print("largest difference to ONNX Runtime:", np.abs(found - tokens).max())
        np.testing.assert_allclose(found, tokens, atol=1e-4, rtol=0)


def test_efficientnet_equals_another_implementation(tmp_path: Path) -> None:
    checkpoint = torch.load(io.BytesIO(raw_file("efficientnet_lite0", tmp_path)), weights_only=True)
    reference = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(checkpoint)
    model = timm.create_model(PACKAGED["efficientnet_lite0"].architecture, pretrained=False).eval()
    model.load_state_dict(load_tensors("efficientnet_lite0"))
    images = noise(2, 224)
    with torch.no_grad():
        logits, expected = model(images), reference(images)
        map_BDhw = reference.extract_features(images)
        (features,) = load_backbone("efficientnet_lite0")(images, (6,))
    print("largest difference of logits:", (logits - expected).abs().max().item())
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(features.patches, map_BDhw.flatten(2).transpose(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.cls, map_BDhw.mean((2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("size", [56, 112])
def test_loads_whole_at_any_size(name: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "keepsight")
    backbone = load_backbone(name, size=size)
    assert "(100.0%)" in caplog.text
    assert (backbone.name, backbone.preprocessing.size, backbone.training) == (name, size, False)
    with torch.no_grad():
        (features,) = backbone(noise(1, size), (backbone.depth,))
    assert features.grid == {("vit_s14_imgfocus", 56): (4, 4), ("vit_s14_imgfocus", 112): (8, 8)}.get(
        (name, size), (-(-size // 32), -(-size // 32))
    )


def test_parameters_are_as_listed() -> None:
    for name, packaged in PACKAGED.items():
        whole = timm.create_model(packaged.architecture, pretrained=False, num_classes=0)
        assert packaged.parameters == sum(p.numel() for p in whole.parameters()), name


def test_size_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(UserError, match=r"Size 60 is not a multiple of the patch size 14 .*: use 56 or 70"):
        load_backbone("vit_s14_imgfocus", size=60)


def test_position_grid_at_its_own_size_is_the_stored_one() -> None:
    weights = load_tensors("vit_s14_imgfocus")
    resized = PACKAGED["vit_s14_imgfocus"].resize(weights, 518)
    torch.testing.assert_close(resized["pos_embed"], weights["pos_embed"], atol=1e-6, rtol=0)


def test_golden_features_notice_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepsight.backbones import packaged

    original = packaged.load_tensors

    def altered(name: str) -> dict[str, torch.Tensor]:
        weights = original(name)
        return weights | {"blocks.3.mlp.fc1.weight": weights["blocks.3.mlp.fc1.weight"].flip(0)}

    monkeypatch.setattr(packaged, "load_tensors", altered)
    with pytest.raises(RuntimeError, match="gives other features than recorded"):
        load_backbone("vit_s14_imgfocus", size=56)


def test_golden_features_notice_patches_out_of_order() -> None:
    backbone = load_backbone("vit_s14_imgfocus", size=56)
    expected = golden_features(backbone)
    check_golden(golden_features(backbone), expected, "same")
    network: Any = backbone.network
    with torch.no_grad():
        network.pos_embed[:, 1:] = network.pos_embed[:, 1:].flip(1)
    with pytest.raises(RuntimeError, match="moved"):
        check_golden(golden_features(backbone), expected, "moved")


def test_random_weights_of_a_packaged_architecture_fetch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepsight.backbones import packaged

    monkeypatch.setattr(packaged, "load_tensors", None)
    backbone = load_backbone("vit_s14_imgfocus", weights="random", size=56, timm_args={"depth": 1})
    assert isinstance(backbone, TimmBackbone)
    assert backbone.depth == 1


def test_report_counts() -> None:
    report = LoadReport(1, 2, 500_000, 1_000_000, (), ("b",))
    assert str(report) == "1 of 2 tensors, 0.50 M numbers (50.0%)"
