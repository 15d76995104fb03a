"""What an open_clip name or directory stands for: architecture, preprocessing, place of the weights. Builds no network."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from keepsight.backbones.config import OPEN_CLIP, BackboneConfig, read_description, weight_file
from keepsight.backbones.hub import hub_file
from keepsight.backbones.weights import read_weights
from keepsight.core import Preprocessing, UserError

HUB = "hf-hub:"

DESCRIPTION = "open_clip_config.json"

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Where open_clip's repositories on the hub keep weights."""

FITS = {"shortest": "crop", "longest": "pad", "squash": "squash"}
"""open_clip's resize_mode -> `Preprocessing.fit`."""

INSTEAD = "a local weight file (weights=FILE)"


@dataclass(frozen=True, slots=True)
class OpenClipModel:
    """One open_clip model, before it is built.

    Attributes:
        name: As the user wrote it.
        architecture: For messages.
        model: open_clip's model_cfg: embed_dim, vision_cfg, text_cfg, quick_gelu...
        preprocessing: Of its images.
        hub: ``ORG/NAME/`` or ``ORG/NAME/FILE`` of its published weights, if there are any.
        path: Its weights on disk, if they are there.
        tokenizer: What `open_clip.get_tokenizer` takes.
    """

    name: str
    architecture: str
    model: dict[str, Any]
    preprocessing: Preprocessing
    hub: str | None
    path: Path | None
    tokenizer: str

    def weights(self) -> tuple[dict[str, Any], str]:
        """The content of the weight file, and where it was found (for messages).

        Raises:
            UserError: There is none, or it cannot be had.
        """
        if self.path is not None:
            file = weight_file(self.path)
            return read_weights(file), str(file)
        if self.hub is None:
            tags = _tags(self.architecture)
            choice = f"add a tag, such as {OPEN_CLIP}{self.architecture}/{tags[0]}" if tags else "none are published"
            raise UserError(f"{self.name} does not say which pretrained weights: {choice}, or give {INSTEAD}.")
        repository, _, file_name = self.hub.rpartition("/")
        names = (Path(file_name).with_suffix(".safetensors").name, file_name) if file_name else FILES
        return read_weights(hub_file(repository, names, INSTEAD)), self.name


def describe(config: BackboneConfig) -> OpenClipModel:
    """What the config's name (``open_clip:...``, or a path with such an architecture, or a described directory) stands for.

    Raises:
        UserError: open_clip is not installed, or does not know it.
    """
    require_open_clip(config.name)
    path: Path | None = None
    if config.weights not in ("pretrained", "random"):
        path = Path(config.weights)
    elif not config.name.startswith(OPEN_CLIP):
        path = Path(config.name)
    if config.name.startswith(OPEN_CLIP) and config.architecture not in (None, config.name):
        raise UserError(
            f"The backbone {config.name} has an architecture, and architecture={config.architecture} contradicts it: leave one out."
        )
    if config.architecture is None and not config.name.startswith(OPEN_CLIP):
        described = _described(Path(config.name) / DESCRIPTION)
        return _from_description(config, described, path=path, tokenizer=f"local-dir:{config.name}")
    name = (config.architecture or config.name).removeprefix(OPEN_CLIP)
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        described = _described(hub_file(repository, (DESCRIPTION,), "a local directory"))
        return _from_description(config, described, path=path, tokenizer=name, hub=f"{repository}/")
    return _from_name(config, name, path)


def require_open_clip(name: str) -> None:
    """Raise UserError if open_clip is not installed."""
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{name} needs the package open_clip_torch: install it with pip install 'keepsight[open-clip]'."
        ) from error


def is_supported(model: dict[str, Any]) -> bool:
    """Whether its image tower gives features block by block: transformers and timm's models, not CLIP's own ResNets."""
    vision = model["vision_cfg"]
    return not isinstance(vision.get("layers"), list | tuple) and vision.get("timm_pool") not in (
        "abs_attn",
        "rot_attn",
    )


def image_size(model: dict[str, Any]) -> int:
    """Side of the input, px; UserError if it is not square."""
    size = model["vision_cfg"].get("image_size", 224)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise UserError(f"This open_clip model takes images of {size} px: only square ones are supported.")
    return int(sides.pop())


def _from_name(config: BackboneConfig, name: str, path: Path | None) -> OpenClipModel:
    """``ARCH`` or ``ARCH/TAG``."""
    import open_clip

    architecture, _, tag = name.partition("/")
    model = open_clip.get_model_config(architecture)
    if model is None:
        raise UserError(f"open_clip has no architecture {architecture!r}: {_hint(name, open_clip.list_models())}")
    tags = _tags(architecture)
    if tag and tag not in tags:
        raise UserError(f"open_clip has no weights {tag!r} of {architecture}: {_hint(tag, tags)}")
    # Without a tag, the images are prepared as for the first published weights: an architecture's weights share this.
    cfg = open_clip.get_pretrained_cfg(architecture, tag or tags[0]) if tags else {}
    if tag and "timm_model_name" not in model["vision_cfg"]:
        # Weights are run with the activation they were trained with; open_clip would only warn.
        model["quick_gelu"] = bool(cfg.get("quick_gelu", False))
    return OpenClipModel(
        name=config.name,
        architecture=architecture,
        model=model,
        preprocessing=_preprocessing(model, cfg, config.name),
        hub=(cfg.get("hf_hub") or None) if tag else None,
        path=path,
        tokenizer=architecture,
    )


def _from_description(
    config: BackboneConfig, described: dict[str, Any], *, path: Path | None, tokenizer: str, hub: str | None = None
) -> OpenClipModel:
    """Of an open_clip_config.json."""
    model = described.get("model_cfg")
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model):
        raise UserError(
            f"{config.name} has no complete {DESCRIPTION} (model_cfg with embed_dim, vision_cfg and text_cfg)."
        )
    preprocessing = _preprocessing(model, described.get("preprocess_cfg") or {}, config.name)
    return OpenClipModel(config.name, config.name, copy.deepcopy(model), preprocessing, hub, path, tokenizer)


def _preprocessing(model: dict[str, Any], cfg: dict[str, Any], name: str) -> Preprocessing:
    import open_clip

    default = open_clip.transform.PreprocessCfg()
    interpolation = cfg.get("interpolation", default.interpolation)
    try:
        return Preprocessing(
            size=image_size(model),
            mean=cfg.get("mean", default.mean),
            std=cfg.get("std", default.std),
            interpolation="bicubic" if interpolation == "random" else interpolation,
            fit=FITS[cfg.get("resize_mode", default.resize_mode)],
        )
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The preprocessing of {name} is not understood: choose another model.") from error


def _described(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no {DESCRIPTION} in {path.parent}: add architecture={OPEN_CLIP}ARCH.")
    return read_description(path)


def _tags(architecture: str) -> list[str]:
    import open_clip

    return list(open_clip.list_pretrained_tags_by_model(architecture))


def _hint(wrong: str, known: list[str]) -> str:
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.replace("/", "-").lower(), lower, n=3, cutoff=0.5)
    close = close or difflib.get_close_matches(wrong.partition("/")[0].lower(), lower, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(lower[name] for name in close)}?"
    return f"'keepsight backbones {OPEN_CLIP}' lists what there is."
