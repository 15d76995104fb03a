"""The ONNX graph through onnxruntime: PyTorch's logits for any batch, its description, and the refusal of one that differs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from keepsight.adapters.adaptformer import AdaptFormerConfig
from keepsight.adapters.blocks import block_adapters
from keepsight.adapters.kept import KeptAdapters
from keepsight.adapters.prompts import VptConfig
from keepsight.backbones.load import load_backbone
from keepsight.core import Head, Readout, UserError
from keepsight.export import onnx as export
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead
from keepsight.heads.neighbours import NeighbourHead

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def head_of(kind: str, width: int) -> Head:
    generator = torch.Generator().manual_seed(0)
    if kind == "linear":
        head = LinearHead(features=width, classes=3)
        with torch.no_grad():
            head.weight_KF.copy_(torch.randn(3, width, generator=generator))
        return head
    bank = NeighbourHead(features=width, classes=3, bank=30, k=5)
    votes = torch.eye(3)[torch.arange(30) % 3]
    bank.store(torch.randn(30, width, generator=generator), votes, torch.zeros(width), torch.ones(width), 2.0)
    return bank


@pytest.mark.parametrize(
    ("kind", "readout", "width"),
    [("neighbours", "1,2:mean+grid2", 640), pytest.param("linear", "last:cls", 64, marks=pytest.mark.slow)],
)
def test_onnxruntime_gives_the_logits_of_pytorch(kind: str, readout: str, width: int, tmp_path: Path) -> None:
    backbone = load_backbone("test_vit", weights="random", size=32, timm_args={"depth": 2})
    model = TunedModel("probe", backbone, Readout.parse(readout), head_of(kind, width), ("a", "b", "ö\n"))
    path = tmp_path / "model.onnx"
    report = export.export_onnx(model, path)
    assert 0 < report.difference < 1e-4 * report.scale
    assert report.images == 32
    assert f"{report.difference:.1e}" in str(report)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # no weights beside it

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p) for p in pixels]
    expected = model.predict(pictures).probabilities
    described = json.loads(session.get_modelmeta().custom_metadata_map["keepsight"])
    assert described["classes"] == ["a", "b", "ö\n"]
    p = described["preprocessing"]
    size = round(p["size"] / p["crop_fraction"] - 0.5)  # as a user would: resize, cut the centre, normalise
    for batch in (1, 5):
        inputs = []
        for picture in pictures[:batch]:
            start = round((size - p["size"]) / 2)
            cut = picture.resize((size, size), Image.Resampling.BICUBIC).crop(
                (start, start, start + p["size"], start + p["size"])
            )
            inputs.append(((np.asarray(cut) / 255 - p["mean"]) / p["std"]).transpose(2, 0, 1))
        found = session.run(["probabilities"], {"images": np.stack(inputs).astype(np.float32)})[0]
        np.testing.assert_allclose(found, expected[:batch], atol=1e-4)
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto)
    assert {o.domain: o.version for o in proto.opset_import}[""] == export.OPSET


@pytest.mark.parametrize("wrong", [lambda x: x + 0.01 * np.abs(x).max(), lambda x: x * np.nan], ids=["other", "nan"])
def test_a_graph_that_differs_is_not_written(wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("test_vit", weights="random", size=32, timm_args={"depth": 2})
    model = TunedModel("probe", backbone, Readout(), head_of("linear", 64), ("a", "b", "c"))
    monkeypatch.setattr(export, "_write", lambda graph, path, model: path.write_bytes(b"graph"))

    def run(path: Path, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return wrong(export._Graph(model)(torch.from_numpy(images))[0].numpy())

    monkeypatch.setattr(export, "_run", run)
    with pytest.raises(UserError, match="other logits than PyTorch"):
        export.export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("test_vit", weights="random", size=32, timm_args={"depth": 2})
    model = TunedModel("probe", backbone, Readout(), head_of("linear", 64), ("a", "b", "c"))
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript: install it with pip install 'keepsight\[onnx\]'"):
        export.export_onnx(model, tmp_path / "model.onnx")


def test_adapters_that_stay_are_in_the_graph(tmp_path: Path) -> None:
    """AdaptFormer and prompts that go through several blocks, in one graph; the parity check is the export's own."""
    backbone = load_backbone("test_vit", weights="random", size=32, timm_args={"depth": 2})
    readout = Readout.parse("last:cls")
    model = TunedModel("probe", backbone, readout, head_of("linear", 64), ("a", "b", "c"))
    plain = model.predict(np.zeros((32, 32), np.uint8)).probabilities
    adapters = AdaptFormerConfig(bottleneck=4), VptConfig(tokens=3, deep=False)
    KeptAdapters(blocks=(1, 2), adaptformer=adapters[0], vpt=adapters[1]).add(backbone)
    with torch.no_grad():
        for adapter in block_adapters(backbone).values():
            for p in adapter.parameters():
                p.normal_()
    assert np.abs(model.predict(np.zeros((32, 32), np.uint8)).probabilities - plain).max() > 1e-3
    report = export.export_onnx(model, tmp_path / "model.onnx")
    assert report.difference < 1e-4 * report.scale
