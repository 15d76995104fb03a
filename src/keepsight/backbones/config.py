"""What a user says about a backbone, and what a path on disk is. Knows no library of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from keepsight.backbones.weights import SUFFIXES
from keepsight.core import Config, Preprocessing, UserError

TimmArgs = dict[str, JsonValue]
"""Extra keyword arguments of a timm architecture, such as ``{"depth": 2}``."""

OPEN_CLIP = "open_clip:"
"""What names of open_clip models begin with: ``open_clip:ARCH``, ``open_clip:ARCH/TAG``, ``open_clip:hf-hub:ORG/NAME``."""

HUGGING_FACE = "hf:"
"""What names of transformers models on the hub begin with: ``hf:ORG/NAME``."""


class BackboneConfig(Config):
    """Which backbone, with which weights, at which input size.

    Attributes:
        name: A packaged name; a timm name; ``open_clip:ARCH/TAG`` (as in ``open_clip:ViT-B-32/laion2b_s34b_b79k``) or
            ``open_clip:hf-hub:ORG/NAME``; ``hf:ORG/NAME`` (a vision model of transformers); a weight file (then with
            `architecture`); or a directory as timm, open_clip or transformers save models.
        weights: ``pretrained``, ``random`` (always the same ones, so that a resumed run goes on with them), or a weight file or
            directory.
        architecture: timm's name, or ``open_clip:ARCH``, for the weights of a path; a directory with a description needs none.
        size: Side of the input, px; the backbone's own by default.
        fit: How an image is made square (see `Preprocessing`); as the backbone was trained, by default (``crop`` for timm's).
        allow_partial: Accept weights that do not fill the whole backbone; what is not filled stays random.
        timm_args: Extra arguments of the timm architecture.
    """

    name: str = "vit_s14_imgfocus"
    weights: str = "pretrained"
    architecture: str | None = None
    size: int | None = Field(default=None, ge=1, le=8192)
    fit: Literal["crop", "squash", "pad"] | None = None
    allow_partial: bool = False
    timm_args: TimmArgs = Field(default_factory=dict)

    def adjusted(self, preprocessing: Preprocessing) -> Preprocessing:
        """The backbone's own preprocessing, with the size and the fit that were asked for."""
        return preprocessing.model_copy(
            update={"size": self.size or preprocessing.size, "fit": self.fit or preprocessing.fit}
        )


def check_size(architecture: str, patch: int, size: int) -> None:
    """Raise UserError unless patches fill the image: the networks would cut the rest off, or fail at the first image."""
    if size % patch:
        below, above = size // patch * patch, -(-size // patch) * patch
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(f"Size {size} is not a multiple of the patch size {patch} of {architecture}: use {nearest}.")


def refuse_timm_args(config: BackboneConfig) -> None:
    """Raise UserError where `timm_args` or `architecture` would be passed over in silence."""
    for setting, given in (("timm_args", bool(config.timm_args)), ("architecture", config.architecture is not None)):
        if given:
            raise UserError(f"The backbone {config.name} is not one of timm's and takes no {setting}: leave it out.")


def weight_file(path: Path) -> Path:
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


def read_description(path: Path) -> dict[str, Any]:
    """A JSON description beside weights, {} if there is none.

    Raises:
        UserError: It is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"The description {path} is not valid JSON: repair or remove it.") from error
    return described if isinstance(described, dict) else {}
