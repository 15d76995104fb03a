"""The one entry to backbones: a name or a path in, a filled backbone out. Knows no method and no data."""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field, ValidationError

from keepsight.assets import ASSETS
from keepsight.backbones.hub import hub_weights
from keepsight.backbones.packaged import PACKAGED, fill_packaged
from keepsight.backbones.timm_models import TimmArgs, TimmBackbone
from keepsight.backbones.weights import SUFFIXES, fill, read_weights
from keepsight.core import Config, Preprocessing, UserError
from keepsight.core.progress import log

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

RADIO_SUMMARIES = "radio_model.summary_idxs"
"""In NVIDIA's files: which of the class tokens make the summary (timm's conversion drops it)."""


class BackboneConfig(Config):
    """Which backbone, with which weights, at which input size.

    Attributes:
        name: A packaged name, a timm name, or a weight file or directory (then with `architecture`).
        weights: ``pretrained``, ``random`` (always the same ones, so that a resumed run goes on with them), or a weight file or
            directory.
        architecture: timm's name for the weights of a path; a directory with timm's config.json needs none.
        size: Side of the input, px; the backbone's own by default.
        fit: How an image is made square (see `Preprocessing`).
        allow_partial: Accept weights that do not fill the whole backbone; what is not filled stays random.
        timm_args: Extra arguments of the timm architecture.
    """

    name: str = "vit_s14_imgfocus"
    weights: str = "pretrained"
    architecture: str | None = None
    size: int | None = Field(default=None, ge=1)
    fit: Literal["crop", "squash", "pad"] = "crop"
    allow_partial: bool = False
    timm_args: TimmArgs = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BackboneEntry:
    """One line of `list_backbones`.

    Attributes:
        name: What `load_backbone` takes.
        source: "packaged" (comes through pip) or "timm" (comes from a model hub).
        parameters: Number of parameters, where known without building the model.
        size: Side of the input, px.
        licence: Of the pretrained weights.
        description: One line.
    """

    name: str
    source: Literal["packaged", "timm"]
    parameters: int | None
    size: int
    licence: str
    description: str


def load_backbone(backbone: BackboneConfig | str | Path, **options: Any) -> TimmBackbone:
    """A filled backbone in eval mode.

    Args:
        backbone: A config, or the name or path alone.
        **options: With a name: the other fields of `BackboneConfig`.

    Raises:
        UserError: Unknown name, unreadable or unsuitable weights, unreachable hub, or a size that does not fit.

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


def _load(config: BackboneConfig) -> TimmBackbone:
    if config.name not in PACKAGED and _is_path(config.name):
        return _load_local(config, Path(config.name))
    if config.architecture not in (None, config.name):
        raise UserError(
            f"The backbone {config.name} has an architecture, and architecture={config.architecture} contradicts it: leave one out."
        )
    if config.name in PACKAGED:
        return _load_packaged(config)
    _check_timm_name(config.name)
    if config.weights not in ("pretrained", "random"):
        inner = config.model_copy(update={"architecture": config.name})
        return _load_local(inner, Path(config.weights))
    return _load_timm(config)


def list_backbones(pattern: str = "*") -> list[BackboneEntry]:
    """Packaged backbones, then timm's, whose name matches the pattern (``*dinov2*``, or a part of the name).

    Example:
        >>> [entry.name for entry in list_backbones("vit_s14*")]
        ['vit_s14_imgfocus']
    """
    if not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    packaged = [
        BackboneEntry(
            name=name,
            source="packaged",
            parameters=p.parameters,
            size=p.preprocessing.size,
            licence=ASSETS[name].licence,
            description=ASSETS[name].description,
        )
        for name, p in PACKAGED.items()
        if fnmatch.fnmatch(name, pattern)
    ]
    tags: dict[str, list[str]] = {}
    for tagged in timm.list_pretrained():
        name, _, tag = tagged.partition(".")
        tags.setdefault(name, []).append(tag)
    return packaged + [_timm_entry(name, tags.get(name, [])) for name in timm.list_models(pattern)]


def _timm_entry(name: str, tags: list[str]) -> BackboneEntry:
    cfg = timm.get_pretrained_cfg(name)
    description = f"weights: {', '.join(tags)}" if tags else "no pretrained weights published"
    return BackboneEntry(name, "timm", None, cfg.input_size[1], cfg.license or "unknown", description)


def _load_packaged(config: BackboneConfig) -> TimmBackbone:
    packaged = PACKAGED[config.name]
    backbone = TimmBackbone(
        name=config.name,
        architecture=packaged.architecture,
        preprocessing=_adjusted(packaged.preprocessing, config),
        timm_args=config.timm_args,
    )
    if config.weights == "pretrained":
        log.info("%s: loaded %s", config.name, fill_packaged(backbone, config.name))
    elif config.weights != "random":
        _fill_from(backbone, config, _weight_file(Path(config.weights)))
    return backbone


def _load_timm(config: BackboneConfig) -> TimmBackbone:
    cfg = timm.get_pretrained_cfg(config.name)
    backbone = TimmBackbone(
        name=config.name,
        architecture=config.name,
        preprocessing=_adjusted(_preprocessing(cfg.to_dict(), config.name), config),
        timm_args=config.timm_args,
    )
    if config.weights == "pretrained":
        instead = f"a local weight file (weights=FILE), or a backbone that comes through pip ({', '.join(PACKAGED)})"
        content = hub_weights(config.name, cfg, instead)
        report = fill(backbone.network, config.name, content, source=config.name, allow_partial=config.allow_partial)
        log.info("%s: loaded %s", config.name, report)
    return backbone


def _load_local(config: BackboneConfig, path: Path) -> TimmBackbone:
    """Weights of a file, or of a directory as timm saves models (config.json beside the weights)."""
    file = _weight_file(path)
    described = _read_description(path) if path.is_dir() else {}
    architecture = config.architecture or described.get("architecture")
    if not isinstance(architecture, str):
        raise UserError(
            f"The weights {path} do not say which architecture they are of: add architecture=NAME, a timm name such as "
            f"vit_small_patch14_dinov2."
        )
    _check_timm_name(architecture)
    cfg = timm.get_pretrained_cfg(architecture).to_dict() | described.get("pretrained_cfg", {})
    backbone = TimmBackbone(
        name=config.name,
        architecture=architecture,
        preprocessing=_adjusted(_preprocessing(cfg, str(path)), config),
        timm_args=described.get("model_args", {}) | config.timm_args,
    )
    if config.weights != "random":
        _fill_from(backbone, config, file)
    return backbone


def _fill_from(backbone: TimmBackbone, config: BackboneConfig, file: Path) -> None:
    content = read_weights(file)
    report = fill(
        backbone.network, backbone.architecture, content, source=str(file), allow_partial=config.allow_partial
    )
    if RADIO_SUMMARIES in content:
        backbone.cls_tokens = tuple(int(i) for i in content[RADIO_SUMMARIES])
    log.info("%s: loaded %s", file, report)


def _is_path(name: str) -> bool:
    if Path(name).suffix in SUFFIXES or os.sep in name or "/" in name:
        return True
    # A directory in the working directory does not hide the architecture of the same name.
    return Path(name).is_dir() and not timm.is_model(name.partition(".")[0])


def _weight_file(path: Path) -> Path:
    """The file itself, or the one weight file of a directory (safetensors first)."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"There is no weight file or directory {path}: check the path.")
    for suffix in SUFFIXES:
        files = sorted(path.glob(f"*{suffix}"))
        if len(files) > 1:
            raise UserError(f"The directory {path} holds {len(files)} {suffix} files: name the one to load.")
        if files:
            return files[0]
    raise UserError(f"The directory {path} holds no weights: expected a file ending in {', '.join(SUFFIXES)}.")


def _read_description(directory: Path) -> dict[str, Any]:
    """timm's config.json, {} if there is none."""
    path = directory / "config.json"
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"The description {path} is not valid JSON: repair or remove it.") from error
    return described if isinstance(described, dict) else {}


def _check_timm_name(name: str) -> None:
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


def _preprocessing(cfg: dict[str, Any], source: str) -> Preprocessing:
    """Of timm's pretrained_cfg."""
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


def _adjusted(preprocessing: Preprocessing, config: BackboneConfig) -> Preprocessing:
    return preprocessing.model_copy(update={"size": config.size or preprocessing.size, "fit": config.fit})
