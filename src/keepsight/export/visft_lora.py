"""The LoRA weights that ViSFT's authors published (EVA-G and EVA-E), read and added to a backbone. Knows no training.

Their networks hold one fused ``qkv`` layer [D -> 3D] a block, loralib's ``MergedLinear(r=64, enable_lora=[True, False, True])``:
``lora_A`` [2r, D] (r rows of q, then r of v) and ``lora_B`` [2D, r] (D rows of q, then D of v). The weight they add is
(alpha / r) B_q A_q to the rows of q and (alpha / r) B_v A_v to the rows of v, with loralib's default alpha = 1.

Known from their training code: these shapes, the scaling, the names inside the blocks (``blocks.N.attn.qkv.lora_A``), and the
prefix ``visual.`` that their script for these files puts in front. The files themselves were not seen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from keepsight.adapters.lora import SplitQKV
from keepsight.backbones.weights import read_weights, readings
from keepsight.core import Backbone, UserError

ALPHA = 1.0
"""loralib's default, which their code does not change; the update is scaled by alpha / r."""

NAME = re.compile(r"(?:^|\.)blocks\.(\d+)\.attn\.qkv\.lora_([AB])$")
"""With whatever in front: "visual." in the published files, "visft_heads.backbone.0." in a training checkpoint."""

VisftLora: TypeAlias = dict[int, tuple[Tensor, Tensor, Tensor, Tensor]]
"""By block, from 0: A_q [r, D], B_q [D, r], A_v [r, D], B_v [D, r]."""


def read_visft_lora(path: str | Path) -> VisftLora:
    """Read a published file (.pt, .pth, .ckpt or .safetensors); pickled code in it is never run.

    Raises:
        UserError: It cannot be read, holds no such LoRA, or is incomplete.
    """
    path = Path(path)
    content = read_weights(path)
    found: dict[int, dict[str, Tensor]] = {}
    for tensors in readings(content):
        for name, tensor in tensors.items():
            if match := NAME.search(name):
                found.setdefault(int(match[1]), {})[match[2]] = tensor
        if found:
            break
    if not found:
        raise UserError(
            f"The file {path} holds no LoRA of ViSFT: expected names such as visual.blocks.0.attn.qkv.lora_A."
        )
    return {block: _parts(path, block, found[block]) for block in sorted(found)}


def _parts(path: Path, block: int, of: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One block's A [2r, D] and B [2D, r] as (A_q, B_q, A_v, B_v), float32."""
    missing = {"A", "B"} - set(of)
    if missing:
        raise UserError(f"The file {path} lacks lora_{missing.pop()} of block {block}: it is incomplete.")
    a, b = of["A"], of["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != 2 * b.shape[1] or b.shape[0] != 2 * a.shape[1]:
        raise UserError(
            f"The LoRA of block {block} in {path} has shapes {list(a.shape)} and {list(b.shape)}: expected [2r, D] and [2D, r]."
        )
    (a_q, a_v), (b_q, b_v) = a.float().chunk(2), b.float().chunk(2)
    return a_q, b_q, a_v, b_v


def merge_visft_lora(backbone: Backbone, lora: VisftLora, alpha: float = ALPHA) -> None:
    """Add the update to the backbone's weights, in place.

    Args:
        backbone: The one it was trained on, with fused qkv layers (timm's ``eva_giant_patch14_clip_224`` or
            ``eva02_enormous_patch14_clip_224``, alone or within open_clip's).
        lora: What `read_visft_lora` gave.
        alpha: The update is scaled by alpha / r.

    Raises:
        UserError: The blocks or widths are not the backbone's; nothing has been changed then.
    """
    layers = _fused_layers(backbone)
    if set(layers) != set(lora):
        raise UserError(
            f"The LoRA is of {_listed(set(lora))}, and {backbone.name} has fused qkv layers in {_listed(set(layers))}: take the "
            "backbone that it was trained on."
        )
    for block, (a_q, *_) in lora.items():
        if layers[block].weight.shape != (3 * a_q.shape[1], a_q.shape[1]):
            raise UserError(
                f"The LoRA of block {block} is {a_q.shape[1]} wide, and the qkv layer of {backbone.name} is "
                f"{list(layers[block].weight.shape)}: take the backbone that it was trained on."
            )
    with torch.no_grad():
        for block, (a_q, b_q, a_v, b_v) in lora.items():
            weight = layers[block].weight
            scale = alpha / a_q.shape[0]
            q, _, v = weight.chunk(3)
            q += (scale * b_q @ a_q).to(weight)
            v += (scale * b_v @ a_v).to(weight)


def _fused_layers(backbone: Backbone) -> dict[int, nn.Linear]:
    """The fused qkv layers by block, from 0."""
    layers = {}
    for name, module in backbone.network.named_modules():
        match = re.search(r"(?:^|\.)blocks\.(\d+)\.attn\.qkv$", name)
        if match and isinstance(module, SplitQKV):
            raise ValueError("merge before adapters are put in: the qkv layers are split")
        if match and isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features:
            layers[int(match[1])] = module
    return layers


def _listed(blocks: set[int]) -> str:
    if not blocks:
        return "no block"
    if blocks == set(range(len(blocks))):
        return f"{len(blocks)} blocks"
    return f"{len(blocks)} blocks of 0 to {max(blocks)}"
