"""The tuned backbone as timm saves models: model.safetensors and config.json, which plain timm reads back. Knows no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models._input import get_model_args
from torch import nn

from keepsight.adapters.kept import adapter_tensors, kept_adapters
from keepsight.backbones.load import build_backbone
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.core import UserError
from keepsight.core.files import atomic_directory
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead

AGREEMENT = 1e-4
"""Largest difference between timm's logits and ours, as a share of the largest logit, for the head to be folded in."""


def export_timm(model: TunedModel, path: Path) -> str:
    """Write a folder that `timm.create_model("local-dir:FOLDER")` and `load_backbone(FOLDER)` read; returns what was written.

    A linear head on the backbone's own pooling becomes timm's classifier, W / scale and b - W mean / scale, if timm then gives
    the same logits; else the features alone are exported. Adapters that cannot be merged (AdaptFormer, prompts) go into the folder
    `adapter` beside the network without them.

    Raises:
        UserError: The backbone is not one of timm's.
    """
    backbone = model.backbone
    if not isinstance(backbone, TimmBackbone):
        raise UserError(f"The backbone {backbone.name} is not one of timm's: only those have timm's layout.")
    carries = kept_adapters(backbone) is not None
    classifier = None if carries else _with_classifier(model, backbone)
    network = classifier if classifier is not None else _without_adapters(backbone)
    names = {"label_names": list(model.classes)} if classifier is not None else {}
    with atomic_directory(path) as temporary:
        write_timm(temporary, network, backbone, names)
        if carries:
            _save_adapters(backbone, temporary / "adapter")
    load = f"load it with\n  timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"
    if carries:
        return (
            f"backbone without its {model.method} adapters in {path}, and the adapters in {path / 'adapter'}: timm's weights alone "
            f"are not the tuned model, which keepsight alone runs (or ONNX: --to onnx); {load}"
        )
    what = (
        f"backbone and classifier ({len(model.classes)} classes)"
        if classifier is not None
        else f"backbone without a head (its {model.method} head reads {model.readout}, which timm's classifier does not)"
    )
    return f"{what} in {path}; {load}"


def write_timm(folder: Path, network: nn.Module, backbone: TimmBackbone, model_config: dict[str, Any]) -> None:
    """model.safetensors and config.json of a network of the backbone's architecture, as timm saves models.

    Args:
        folder: Exists.
        network: The backbone's own, or the same with a classifier.
        backbone: Says the architecture, its arguments and the preprocessing.
        model_config: What else timm should note, such as label names.
    """
    p = backbone.preprocessing
    crop = {"crop": "center", "squash": "squash", "pad": "border"}[p.fit]
    described = {
        "input_size": (3, p.size, p.size),
        "mean": p.mean,
        "std": p.std,
        "interpolation": p.interpolation,
        "crop_pct": p.crop_fraction,
        "crop_mode": crop,
    }
    save_for_hf(
        network,
        str(folder),
        model_config=model_config,
        model_args=_arguments(backbone),
        safe_serialization=True,
        data_config=described,
    )
    _check_description(folder / "config.json", backbone)


def _without_adapters(backbone: TimmBackbone) -> nn.Module:
    """The network itself, or where it carries adapters a copy of the rest of it."""
    added = adapter_tensors(backbone)
    if not added:
        return backbone.network
    network = build_backbone(backbone.spec()).network
    network.load_state_dict({name: t for name, t in backbone.network.state_dict().items() if name not in added})
    return network


def _save_adapters(backbone: TimmBackbone, folder: Path) -> None:
    """adapter.json (`KeptAdapters`) and adapter.safetensors (by the names that they have within the network)."""
    kept = kept_adapters(backbone)
    assert kept is not None
    folder.mkdir()
    (folder / "adapter.json").write_text(kept.model_dump_json(indent=2), encoding="utf-8")
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in adapter_tensors(backbone).items()}
    save_file(tensors, folder / "adapter.safetensors")


def _arguments(backbone: TimmBackbone) -> dict[str, Any]:
    """What rebuilds the network beside what timm recorded itself; only what the architecture takes at all."""
    arguments: dict[str, Any] = dict(backbone.timm_args)
    if timm.get_pretrained_cfg(backbone.architecture).fixed_input_size:
        arguments["img_size"] = backbone.preprocessing.size
    return arguments


def _check_description(path: Path, backbone: TimmBackbone) -> None:
    """timm writes the architecture without its tag; a description without it could not be read back."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("architecture") != backbone.architecture.partition(".")[0]:
        raise RuntimeError(f"timm described {backbone.architecture} as {found.get('architecture')}")


def _with_classifier(model: TunedModel, backbone: TimmBackbone) -> nn.Module | None:
    """The network with the head as timm's classifier, or None where that would give other logits."""
    head, readout = model.head, model.readout.resolved(backbone.depth)
    if not isinstance(head, LinearHead) or readout.blocks != (backbone.depth,) or len(readout.pools) != 1:
        return None
    arguments = {**get_model_args(backbone.network), **_arguments(backbone), "num_classes": len(model.classes)}
    network: Any = timm.create_model(backbone.architecture, pretrained=False, **arguments).eval()
    layer = network.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.in_features != head.weight_KF.shape[1]:
        return None
    network.load_state_dict(backbone.network.state_dict(), strict=False)
    with torch.no_grad():
        weight_KF = head.weight_KF / head.scale_F
        layer.weight.copy_(weight_KF)
        layer.bias.copy_(head.bias_K - weight_KF @ head.mean_F)
    size = backbone.preprocessing.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = head(readout.read(backbone(images, readout.blocks)))
        difference = (network(images) - expected).abs().max() / expected.abs().max()
    return network if bool(difference <= AGREEMENT) else None
