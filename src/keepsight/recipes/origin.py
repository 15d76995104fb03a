"""Where a tuned model came from: the untouched backbone, and which images it was tuned on. Knows no method.

`origin.json` lies in a run's folder and in its model's. Weights are known by their hash, images by a part of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from keepsight.backbones.load import BackboneConfig, load_backbone
from keepsight.core import Backbone, Config, Preprocessing, UserError
from keepsight.core.files import write_text
from keepsight.core.progress import log
from keepsight.export.model import TunedModel

ORIGIN = "origin.json"

DIGITS = 16
"""Hex digits kept of an image's content hash."""

SKETCH = 4096
"""Images kept at most: those of the smallest hashes, so that two large sets that are the same are still found to be."""

ANCESTORS = 5
"""Folders above a model's that are searched: a run keeps each method's own in cells/METHOD/SEED/model."""


class Origin(Config):
    """origin.json.

    Attributes:
        backbone: What was loaded.
        weights: Hash of the untouched weights.
        data: Name of the data set.
        images: First 16 hex digits of the content hashes of its images, the 4,096 smallest where there are more.
    """

    backbone: BackboneConfig
    weights: str
    data: str
    images: tuple[str, ...]


def sketch(hashes: Iterable[bytes]) -> tuple[str, ...]:
    """What is kept of content hashes."""
    return tuple(sorted({key.hex()[:DIGITS] for key in hashes})[:SKETCH])


def write_origin(folder: Path, origin: Origin) -> None:
    """Into a run's or a model's folder."""
    write_text(folder / ORIGIN, origin.model_dump_json() + "\n")


def read_origin(model: Path) -> Origin | None:
    """Of a model's folder or its run's; None if none is there.

    Raises:
        UserError: It is damaged.
    """
    folder = model.resolve()
    for place in (folder / "model", folder, *folder.parents[:ANCESTORS]):
        path = place / ORIGIN
        if path.is_file():
            try:
                return Origin.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValidationError, UnicodeDecodeError) as error:
                raise UserError(f"{path} is damaged: restore it, or remove it.") from error
        if (place / "config.yaml").is_file():  # a run's own folder: what lies above is somebody else's
            return None
    return None


def untouched_backbone(model: TunedModel, origin: Origin | None) -> Backbone:
    """The backbone that a model was tuned from, loaded again.

    Raises:
        UserError: It cannot be had, or it is not the one: another architecture, or other weights than were recorded.
    """
    tuned = model.backbone
    if origin is None:
        log.warning(
            "The model does not record which weights it was tuned from: those that %s gives now are taken.", tuned.name
        )
        config = _config_of(tuned)
    else:
        config = origin.backbone
    backbone = load_backbone(config)
    if backbone.spec() != tuned.spec():
        raise UserError(
            f"The model was tuned from another network than {config.name} gives now (its architecture or its input differ), so "
            f"that there is nothing to compare it with: give the model to compare with by --against."
        )
    if origin is not None and (found := backbone.weights_hash()) != origin.weights:
        raise UserError(
            f"The weights that {config.name} gives now (sha256 {found[:12]}) are not those that the model was tuned from "
            f"({origin.weights[:12]}): restore them, or give the model to compare with by --against."
        )
    return backbone


def _config_of(backbone: Backbone) -> BackboneConfig:
    p: Preprocessing = backbone.preprocessing
    return BackboneConfig(name=backbone.name, size=p.size, fit=p.fit)
