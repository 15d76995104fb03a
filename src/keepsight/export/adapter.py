"""What LoRA added to a backbone, as an adapter that PEFT alone reads on the plain timm model. Knows no training.

keepsight trains LoRA on q and v of a split qkv layer. On timm's own fused layer [D -> 3D] the same update is one LoRA of
rank 2r, exactly: A = [A_q; A_v] of shape [2r, D] and B of shape [3D, 2r] with B_q in the rows of q and the first r columns,
B_v in the rows of v and the last r columns, zeros elsewhere; alpha becomes 2 alpha, so that alpha / rank stays.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from keepsight.core import UserError
from keepsight.core.files import atomic_directory

if TYPE_CHECKING:
    from peft import PeftModel

    from keepsight.export.model import TunedModel

PLACES = {"q": 0, "k": 1, "v": 2}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class FusedAdapter:
    """A LoRA adapter of the plain timm network.

    Attributes:
        rank: Of every update.
        alpha: The update is multiplied by alpha / rank.
        tensors: By PEFT's names, float32 on the CPU: lora_A [rank, in] and lora_B [out, rank] of each adapted layer.
    """

    rank: int
    alpha: float
    tensors: dict[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """Full names of the adapted layers."""
        return sorted({_split_name(name)[0] for name in self.tensors})

    def save(self, path: Path) -> None:
        """Write PEFT's two files into a folder."""
        from peft import LoraConfig

        path.mkdir(parents=True, exist_ok=True)
        alpha = int(self.alpha) if self.alpha == int(self.alpha) else self.alpha
        settings = LoraConfig(
            r=self.rank, lora_alpha=alpha, target_modules=self.modules, bias="none", inference_mode=True
        )
        settings.target_modules = self.modules  # a list: PEFT's set has another order in every process
        settings.save_pretrained(str(path))
        save_file(self.tensors, path / WEIGHTS, metadata={"format": "pt"})


def fused_adapter(peft_model: PeftModel) -> FusedAdapter | None:
    """The adapter of a network whose qkv layers are split, for the network as timm builds it; call it before merging.

    None where it is not plain LoRA (DoRA, OFT, OSF): only that is one LoRA of the fused layer.
    """
    settings = peft_model.peft_config["default"]
    if settings.peft_type.value != "LORA" or settings.use_dora:
        return None
    found: dict[str, dict[str, dict[str, Tensor]]] = {}  # layer -> part of it ("" for the whole) -> A and B
    for name, tensor in peft_model.state_dict().items():
        if not (match := re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.default\.weight", name)):
            continue
        layer, part = (match[1][:-2], match[1][-1]) if re.search(r"(^|\.)qkv\.[qkv]$", match[1]) else (match[1], "")
        value = tensor.detach().to("cpu", torch.float32, copy=True)
        found.setdefault(layer, {}).setdefault(part, {})[match[2]] = value
    parts = max(len(of) for of in found.values())
    tensors = {}
    for layer, of in found.items():
        a, b = _fused(of, parts * settings.r)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = b
    return FusedAdapter(rank=parts * settings.r, alpha=parts * settings.lora_alpha, tensors=tensors)


def _fused(of: dict[str, dict[str, Tensor]], rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] of one layer; what the parts do not need of the rank is zero."""
    first = next(iter(of.values()))
    r, width = first["A"].shape
    rows = first["B"].shape[0]
    a = torch.zeros(rank, width)
    b = torch.zeros(rows if "" in of else 3 * rows, rank)
    for i, (part, ab) in enumerate(of.items()):
        start = PLACES.get(part, 0) * rows
        a[i * r : (i + 1) * r] = ab["A"]
        b[start : start + rows, i * r : (i + 1) * r] = ab["B"]
    return a, b


def _split_name(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
    if match is None:
        raise ValueError(f"{name} is not a tensor of a LoRA adapter")
    return match[1], match[2]


def read_adapter(path: Path) -> FusedAdapter:
    """Read what `FusedAdapter.save` wrote.

    Raises:
        UserError: It is damaged.
    """
    import json

    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        adapter = FusedAdapter(int(settings["r"]), float(settings["lora_alpha"]), load_file(path / WEIGHTS))
        _ = adapter.modules
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The adapter in {path} is damaged or incomplete ({reason}): save it again.") from error
    return adapter


def export_adapter(model: TunedModel, path: Path) -> str:
    """Write the adapter folder; returns how to load it.

    Raises:
        UserError: The model was not fine-tuned by LoRA.
    """
    if model.adapter is None:
        raise UserError(
            f"This model has no adapter: it was fitted by {model.method}, and PEFT adapters come from finetune-lora alone."
        )
    with atomic_directory(path) as temporary:
        model.adapter.save(temporary)
    size = model.backbone.preprocessing.size
    return (
        f"LoRA adapter of rank {model.adapter.rank} on {len(model.adapter.modules)} layers in {path}; load it with\n"
        f"  backbone = keepsight.load_backbone({model.backbone.name!r}, size={size})\n"
        f"  peft.PeftModel.from_pretrained(backbone.network, {str(path)!r})"
    )
