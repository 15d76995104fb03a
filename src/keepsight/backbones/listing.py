"""What backbones there are, without building one. Reaches no network."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
from dataclasses import dataclass
from typing import Literal

import timm

from keepsight.assets import ASSETS
from keepsight.backbones.config import OPEN_CLIP
from keepsight.backbones.packaged import PACKAGED


@dataclass(frozen=True, slots=True)
class BackboneEntry:
    """One line of `list_backbones`.

    Attributes:
        name: What `load_backbone` takes.
        source: "packaged" (comes through pip), "timm" or "open_clip" (come from a model hub).
        parameters: Number of parameters, where known without building the model.
        size: Side of the input, px.
        licence: Of the pretrained weights.
        description: One line.
    """

    name: str
    source: Literal["packaged", "timm", "open_clip"]
    parameters: int | None
    size: int
    licence: str
    description: str


def list_backbones(pattern: str = "*") -> list[BackboneEntry]:
    """Packaged backbones, then timm's, then open_clip's (if it is installed), whose name matches the pattern.

    The pattern is as in a shell (``*dinov2*``), or a part of the name. Models of transformers are not listed: any ``hf:ORG/NAME``
    of a known family can be loaded.

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
    from_timm = [_timm_entry(name, tags.get(name, [])) for name in timm.list_models(pattern)]
    return packaged + from_timm + _open_clip_entries(pattern)


def _timm_entry(name: str, tags: list[str]) -> BackboneEntry:
    cfg = timm.get_pretrained_cfg(name)
    return BackboneEntry(name, "timm", None, cfg.input_size[1], cfg.license or "unknown", _weights(tags))


def _open_clip_entries(pattern: str) -> list[BackboneEntry]:
    beginning = re.split(r"[*?\[]", pattern.lower())[0]
    if not (OPEN_CLIP.startswith(beginning) or beginning.startswith(OPEN_CLIP)):
        return []  # importing open_clip takes seconds, which shell completion does not have
    if importlib.util.find_spec("open_clip") is None:
        return []
    import open_clip

    from keepsight.backbones.open_clip_names import image_size, is_supported

    return [
        BackboneEntry(
            f"{OPEN_CLIP}{name}",
            "open_clip",
            None,
            image_size(open_clip.get_model_config(name)),
            "unknown",
            _weights(list(open_clip.list_pretrained_tags_by_model(name))),
        )
        for name in open_clip.list_models()
        if fnmatch.fnmatch(f"{OPEN_CLIP}{name}".lower(), pattern.lower())
        and is_supported(open_clip.get_model_config(name))
    ]


def _weights(tags: list[str]) -> str:
    return f"weights: {', '.join(tags)}" if tags else "no pretrained weights published"
