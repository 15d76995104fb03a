"""Filled timm backbones: packaged ones, those of the model hub, and local weight files. Knows no other library of models."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
from pydantic import ValidationError

from keepsight.backbones.config import BackboneConfig, read_description, weight_file
from keepsight.backbones.hub import hub_weights
from keepsight.backbones.packaged import PACKAGED, fill_packaged
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.backbones.weights import fill, read_weights
from keepsight.core import Preprocessing, UserError
from keepsight.core.progress import log

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

RADIO_SUMMARIES = "radio_model.summary_idxs"
"""In NVIDIA's files: which of the class tokens make the summary (timm's conversion drops it)."""

_RADIO_VERSIONS = {"_radio_v3": (0, 1, 2), "_radio_v4": (0, 1)}
"""The same by timm's names, which come without it: the class tokens of the teachers that have a summary (C-RADIOv3: CLIP, SigLIP 2,
DINOv2; C-RADIOv4: SigLIP 2, DINOv3), not SAM's."""


def load_named(config: BackboneConfig) -> TimmBackbone:
    """A packaged backbone, or one with a timm name.

    Raises:
        UserError: See `load_backbone`.
    """
    if config.architecture not in (None, config.name):
        raise UserError(
            f"The backbone {config.name} has an architecture, and architecture={config.architecture} contradicts it: leave one out."
        )
    if config.name in PACKAGED:
        return _load_packaged(config)
    check_name(config.name)
    if config.weights not in ("pretrained", "random"):
        inner = config.model_copy(update={"architecture": config.name})
        return load_local(inner, Path(config.weights))
    return _load_timm(config)


def _load_packaged(config: BackboneConfig) -> TimmBackbone:
    packaged = PACKAGED[config.name]
    backbone = TimmBackbone(
        name=config.name,
        architecture=packaged.architecture,
        preprocessing=config.adjusted(packaged.preprocessing),
        timm_args=config.timm_args,
    )
    if config.weights == "pretrained":
        log.info("%s: loaded %s", config.name, fill_packaged(backbone, config.name))
    elif config.weights != "random":
        _fill_from(backbone, config, weight_file(Path(config.weights)))
    return backbone


def _load_timm(config: BackboneConfig) -> TimmBackbone:
    cfg = timm.get_pretrained_cfg(config.name)
    backbone = TimmBackbone(
        name=config.name,
        architecture=config.name,
        preprocessing=config.adjusted(preprocessing_of(cfg.to_dict(), config.name)),
        timm_args=config.timm_args,
        cls_tokens=_summary_tokens(config.name),
    )
    if config.weights == "pretrained":
        instead = f"a local weight file (weights=FILE), or a backbone that comes through pip ({', '.join(PACKAGED)})"
        content = hub_weights(config.name, cfg, instead)
        report = fill(backbone.network, config.name, content, source=config.name, allow_partial=config.allow_partial)
        log.info("%s: loaded %s", config.name, report)
    return backbone


def load_local(config: BackboneConfig, path: Path) -> TimmBackbone:
    """Weights of a file, or of a directory as timm saves models (config.json beside the weights).

    Raises:
        UserError: See `load_backbone`.
    """
    file = weight_file(path)
    described = read_description(path / "config.json") if path.is_dir() else {}
    architecture = config.architecture or described.get("architecture")
    if not isinstance(architecture, str):
        raise UserError(
            f"The weights {path} do not say which architecture they are of: add architecture=NAME, a timm name such as "
            f"vit_small_patch14_dinov2."
        )
    check_name(architecture)
    cfg = timm.get_pretrained_cfg(architecture).to_dict() | described.get("pretrained_cfg", {})
    backbone = TimmBackbone(
        name=config.name,
        architecture=architecture,
        preprocessing=config.adjusted(preprocessing_of(cfg, str(path))),
        timm_args={k: v for k, v in described.get("model_args", {}).items() if k != "num_classes"} | config.timm_args,
        cls_tokens=_summary_tokens(architecture),
    )
    if config.weights != "random":
        _fill_from(backbone, config, file)
    return backbone


def _summary_tokens(architecture: str) -> tuple[int, ...]:
    return next((tokens for version, tokens in _RADIO_VERSIONS.items() if version in architecture), (0,))


def _fill_from(backbone: TimmBackbone, config: BackboneConfig, file: Path) -> None:
    content = read_weights(file)
    report = fill(
        backbone.network, backbone.architecture, content, source=str(file), allow_partial=config.allow_partial
    )
    if RADIO_SUMMARIES in content:
        backbone.cls_tokens = tuple(int(i) for i in content[RADIO_SUMMARIES])
    log.info("%s: loaded %s", file, report)


def check_name(name: str) -> None:
    """Raise UserError, with what might have been meant, unless timm knows the architecture and the tag."""
    architecture = name.partition(".")[0]
    if timm.is_model(architecture):
        tagged = timm.list_pretrained(f"{architecture}.*")
        if name == architecture or name in tagged:
            return
        candidates = tagged
    else:
        candidates = [*PACKAGED, *timm.list_models()]
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "'keepsight backbones' lists what there is."
    raise UserError(f"There is no backbone called {name!r}: {hint}")


def preprocessing_of(cfg: dict[str, Any], source: str) -> Preprocessing:
    """Of timm's pretrained_cfg; UserError if it is not of an RGB input."""
    interpolation = cfg.get("interpolation")
    try:
        return Preprocessing(
            size=cfg["input_size"][-1],
            mean=cfg["mean"],
            std=cfg["std"],
            interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
            crop_fraction=cfg.get("crop_pct") or 1.0,
        )
    except (ValidationError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"The backbone {source} does not describe an RGB input: choose another one.") from error
