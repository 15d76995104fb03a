"""Reads EfficientNet-Lite0's checkpoint, under timm's names. Knows nothing of where the file came from."""

from __future__ import annotations

import io
import re
from typing import Any

import torch
from numpy.typing import NDArray

STAGE_LENGTHS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each of the seven stages: the checkpoint counts blocks through, timm by stage."""

OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The first stage, which does not expand its channels."""
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def read_efficientnet_lite0(content: bytes) -> dict[str, NDArray[Any]]:
    """The whole checkpoint, ImageNet head included, under the names of timm's `tf_efficientnet_lite0`."""
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {timm_name(name): tensor.numpy() for name, tensor in weights.items()}


def timm_name(name: str) -> str:
    """The name in timm of a tensor of the checkpoint; KeyError for an unknown one.

    Example:
        >>> timm_name("_blocks.2._bn0.weight"), timm_name("_fc.bias")
        ('blocks.1.1.bn1.weight', 'classifier.bias')
    """
    if not (match := re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)):
        module, _, kind = name.partition(".")
        return f"{OUTSIDE[module]}.{kind}"
    position, module, kind = int(match[1]), match[2], match[3]
    stage = 0
    while position >= STAGE_LENGTHS[stage]:
        position -= STAGE_LENGTHS[stage]
        stage += 1
    names = SEPARABLE if stage == 0 else INVERTED
    return f"blocks.{stage}.{position}.{names[module]}.{kind}"
