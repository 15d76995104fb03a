"""Reads a DINOv2-style ViT out of an ONNX graph, under timm's names. Knows nothing of where the file came from.

An exported graph keeps the Hugging Face names of biases, norms and layer scales, but linear weights become anonymous
and transposed. Each is found again through the graph: the Add after its MatMul has the named bias as other input.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.float32]

PREFIX = "backbone."

RENAMED = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Hugging Face name -> timm name, within one block, for modules with a weight and a bias."""


def read_vit_onnx(content: bytes) -> dict[str, Array]:
    """The weights of a DINOv2 ViT (no decoder), named as in timm's `vit_small_patch14_dinov2`, position grid as stored.

    Raises ValueError if the graph has not the expected structure.
    """
    graph = onnx.load_from_string(content).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    named = {name.removeprefix(PREFIX): a for name, a in stored.items() if name.startswith(PREFIX)}
    named |= {name.removeprefix(PREFIX): w for name, w in _linear_weights(graph, stored).items()}

    weights = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": _positions(stored),
        "patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["layernorm.weight"],
        "norm.bias": named["layernorm.bias"],
    }
    depth = 1 + max(int(m[1]) for name in named if (m := re.match(r"encoder\.layer\.(\d+)\.", name)))
    for block in range(depth):
        weights |= _block(named, f"encoder.layer.{block}.", f"blocks.{block}.")
    return {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}


def _block(named: dict[str, Array], source: str, target: str) -> dict[str, Array]:
    """One transformer block; query, key and value are stacked in timm's order."""
    weights: dict[str, Array] = {}
    for kind in ("weight", "bias"):
        for old, new in RENAMED.items():
            weights[f"{target}{new}.{kind}"] = named[f"{source}{old}.{kind}"]
        qkv = [named[f"{source}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        weights[f"{target}attn.qkv.{kind}"] = np.concatenate(qkv)
    for scale in (1, 2):
        weights[f"{target}ls{scale}.gamma"] = named[f"{source}layer_scale{scale}.lambda1"]
    return weights


def _linear_weights(graph: onnx.GraphProto, stored: dict[str, Array]) -> dict[str, Array]:
    """Name of weight -> weight [out, in], for every MatMul with a constant whose result is added to a named bias."""
    matmuls = {n.output[0]: stored[n.input[1]] for n in graph.node if n.op_type == "MatMul" and n.input[1] in stored}
    weights: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (tuple(node.input), tuple(node.input)[::-1]):
            if bias.endswith(".bias") and product in matmuls:
                weights[bias.removesuffix("bias") + "weight"] = matmuls[product].T
    return weights


def _positions(stored: dict[str, Array]) -> Array:
    """Position embedding [1, 1 + N, D]: a constant [1, 1, D] for the class token and one [1, N, D] for the patches."""
    anonymous = [a for name, a in stored.items() if not name.startswith(PREFIX) and a.ndim == 3 and a.shape[0] == 1]
    class_position = [a for a in anonymous if a.shape[1] == 1]
    patch_positions = [a for a in anonymous if a.shape[1] > 1]
    if len(class_position) != 1 or len(patch_positions) != 1:
        raise ValueError(f"expected one class position and one patch grid, found {[a.shape for a in anonymous]}")
    return np.concatenate([class_position[0], patch_positions[0]], axis=1)
