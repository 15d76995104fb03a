"""The one entry to backbones: a name or a path in, a filled backbone out. Knows no method and no data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from keepsight.backbones import timm_loading
from keepsight.backbones.config import (
    HUGGING_FACE,
    OPEN_CLIP,
    BackboneConfig,
    read_description,
    weight_file,
)
from keepsight.backbones.listing import BackboneEntry, list_backbones
from keepsight.backbones.packaged import PACKAGED
from keepsight.backbones.saved import SAVED, SavedBackbone
from keepsight.backbones.small_cnn import SmallCnn
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.backbones.weights import SUFFIXES, fill, read_weights
from keepsight.core import Backbone, Preprocessing, UserError
from keepsight.core.progress import log

__all__ = ["BackboneConfig", "BackboneEntry", "build_backbone", "list_backbones", "load_backbone"]

Library = Literal["timm", "open_clip", "transformers"]


def load_backbone(backbone: BackboneConfig | str | Path, **options: Any) -> Backbone:
    """A filled backbone in eval mode.

    Args:
        backbone: A config, or the name or path alone.
        **options: With a name: the other fields of `BackboneConfig`.

    Raises:
        UserError: Unknown name, unreadable or unsuitable weights, unreachable hub, a size that does not fit, or a library that
            is not installed.

    Example:
        >>> import torch
        >>> backbone = load_backbone("test_vit", weights="random", size=64)
        >>> (features,) = backbone(torch.zeros(1, 3, 64, 64), blocks=(3,))
        >>> tuple(features.cls.shape), features.grid
        ((1, 64), (4, 4))
    """
    if isinstance(backbone, BackboneConfig):
        config = BackboneConfig.model_validate(backbone.model_dump() | options)
    else:
        config = BackboneConfig(name=str(backbone), **options)
    # What no weights fill is drawn from a fixed seed, and the caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _load(config).eval()


def _load(config: BackboneConfig) -> Backbone:
    if config.architecture is None and _is_path(config.name) and (Path(config.name) / SAVED).is_file():
        return _load_saved(config)
    library = _library(config)
    if library == "open_clip":
        from keepsight.backbones.open_clip_models import load_open_clip

        return load_open_clip(config)
    if library == "transformers":
        from keepsight.backbones.huggingface_loading import load_transformers

        return load_transformers(config)
    if config.name not in PACKAGED and _is_path(config.name):
        return timm_loading.load_local(config, Path(config.name))
    return timm_loading.load_named(config)


def _load_saved(config: BackboneConfig) -> Backbone:
    """What `export.backbone` wrote: the architecture and preprocessing of `keepsight.json`, with the weights beside it."""
    folder = Path(config.name)
    saved = SavedBackbone.read(folder)
    preprocessing = config.adjusted(Preprocessing.model_validate_json(str(saved.backbone["preprocessing"])))
    spec = saved.backbone | {"name": config.name, "preprocessing": preprocessing.model_dump_json()}
    if config.timm_args:
        raise UserError(f"The tuned backbone {folder} says what it is built like: leave out timm_args.")
    # Read first: what is missing is said before a large network is built.
    weights = None if config.weights == "random" else read_weights(weight_file(folder))
    backbone = build_backbone(spec)
    if weights is None:
        return backbone
    if isinstance(backbone, TimmBackbone):
        report = fill(
            backbone.network, backbone.architecture, weights, source=str(folder), allow_partial=config.allow_partial
        )
        log.info("%s: loaded %s", folder, report)
        return backbone
    from keepsight.backbones.open_clip_models import OpenClipBackbone, fill_image_tower

    assert isinstance(backbone, OpenClipBackbone)
    fill_image_tower(backbone, weights, str(folder), allow_partial=config.allow_partial)
    return backbone


def build_backbone(spec: dict[str, str | int | bool]) -> Backbone:
    """The architecture that a backbone's `spec` described, with random weights and in eval mode; reaches no network.

    The caller fills it (``backbone.network.load_state_dict(state, strict=True)``).

    Raises:
        UserError: The library that the backbone comes from is not installed.
    """
    if spec["library"] == "open_clip":
        from keepsight.backbones.open_clip_models import OpenClipBackbone

        return OpenClipBackbone.from_spec(spec).eval()
    if spec["library"] == "transformers":
        from keepsight.backbones.huggingface import TransformersBackbone

        return TransformersBackbone.from_spec(spec).eval()
    if spec["library"] == "keepsight":
        return SmallCnn.from_spec(spec).eval()
    return TimmBackbone.from_spec(spec).eval()


def _library(config: BackboneConfig) -> Library:
    """Whose model the config asks for: told by the name, or by what describes the weights in a directory."""
    if config.name.startswith(OPEN_CLIP) or (config.architecture or "").startswith(OPEN_CLIP):
        return "open_clip"
    if config.name.startswith(HUGGING_FACE):
        return "transformers"
    if config.architecture is None and _is_path(config.name):
        if (Path(config.name) / "open_clip_config.json").is_file():
            return "open_clip"
        described = read_description(Path(config.name) / "config.json")
        if "model_type" in described and "architecture" not in described:
            return "transformers"
    return "timm"


def _is_path(name: str) -> bool:
    if Path(name).suffix in SUFFIXES or os.sep in name or "/" in name:
        return True
    # A directory in the working directory does not hide the architecture of the same name.
    return Path(name).is_dir() and name not in PACKAGED and not timm.is_model(name.partition(".")[0])
