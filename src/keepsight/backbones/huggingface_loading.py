"""Filled vision models of transformers: of the model hub or of a directory. Executes no code of a repository, ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keepsight.backbones.config import HUGGING_FACE, BackboneConfig, read_description, refuse_timm_args, weight_file
from keepsight.backbones.hub import hub_file
from keepsight.backbones.huggingface import (
    TWO_TOWERS,
    TransformersBackbone,
    class_of,
    family_of,
    quiet_transformers,
)
from keepsight.backbones.weights import LoadReport, load_report, read_weights, readings, shortfall
from keepsight.core import Preprocessing, UserError
from keepsight.core.progress import log

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers keeps weights, the preferred one first; an index names the files of weights in several parts."""

PROCESSOR = "preprocessor_config.json"

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's codes -> `Preprocessing.interpolation`."""

INSTEAD = "the directory of a downloaded copy"


def load_transformers(config: BackboneConfig) -> TransformersBackbone:
    """The filled model that the config names: ``hf:ORG/NAME``, or a directory as transformers saves models.

    Raises:
        UserError: See `load_backbone`.
    """
    refuse_timm_args(config)
    description, processor = (_json_of(config.name, name) for name in ("config.json", PROCESSOR))
    vision = description.get("vision_config") if description.get("model_type") in TWO_TOWERS else description
    if not isinstance(vision, dict):
        raise UserError(f"The config.json of {config.name} has no vision_config: choose another model.")
    if vision is not description:
        vision = {"model_type": f"{description['model_type']}_vision_model"} | vision
    family_of(config.name, vision)
    preprocessing = config.adjusted(preprocessing_of(processor, config.name))
    backbone = TransformersBackbone(name=config.name, description=vision, preprocessing=preprocessing)
    if config.weights != "random":
        file = _weights_of(config.name) if config.weights == "pretrained" else weight_file(Path(config.weights))
        report = _fill(backbone, _content(config.name, file), str(file), config.allow_partial)
        log.info("%s: loaded %s", config.name, report)
    return backbone


def preprocessing_of(processor: dict[str, Any], name: str) -> Preprocessing:
    """Of a preprocessor_config.json.

    Raises:
        UserError: There is none, or it is not understood.
    """
    if not processor:
        raise UserError(f"{name} has no {PROCESSOR}, which says how images are normalised: put it beside config.json.")
    try:
        size, crop = _side(processor["size"]), _side(processor.get("crop_size"))
        cropped = crop is not None and processor.get("do_center_crop", False)
        shortest = isinstance(processor["size"], int) or "shortest_edge" in processor["size"]
        fraction = crop / size if cropped and crop and size else float(processor.get("crop_pct") or 1.0)
        normalised = processor.get("do_normalize", True)
        # Pixels are multiplied by this before they are normalised; ours are in [0, 1] already.
        scale = 255 * float(processor.get("rescale_factor", 1 / 255))
        mean, std = (processor["image_mean"], processor["image_std"]) if normalised else ([0.0] * 3, [1.0] * 3)
        return Preprocessing(
            size=crop if cropped else size,
            mean=tuple(m / scale for m in mean),
            std=tuple(s / scale for s in std),
            interpolation=RESAMPLING[processor.get("resample", 2)],
            fit="crop" if cropped or shortest else "squash",
            crop_fraction=min(fraction, 1.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The {PROCESSOR} of {name} is not understood ({error!r}): choose another model.") from error


def _side(size: Any) -> int | None:
    """Side in px of ``224``, ``{"shortest_edge": 224}`` or ``{"height": 224, "width": 224}``; None for None."""
    if size is None or isinstance(size, int):
        return size
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    if size["height"] != size["width"]:
        raise ValueError("not square")
    return int(size["height"])


def _fill(backbone: TransformersBackbone, content: dict[str, Any], source: str, allow_partial: bool) -> LoadReport:
    """Fill through transformers' own renaming of old checkpoints, each container and prefix tried; the fullest reading wins."""
    target = backbone.network.state_dict()
    best: tuple[LoadReport, nn.Module, dict[str, Tensor]] | None = None
    for candidate in readings(content):
        network, report = _read(backbone, candidate, target)
        if best is None or report.keys_loaded > best[0].keys_loaded:
            best = report, network, candidate
        if not report.missing:
            break
    if best is None:
        raise UserError(f"The weights of {source} hold no tensors: check the file.")
    report, network, candidate = best
    if not report.keys_loaded or (report.missing and not allow_partial):
        raise UserError(shortfall(report, candidate, target, backbone.name, source))
    backbone.network.load_state_dict(network.state_dict())
    return report


def _read(
    backbone: TransformersBackbone, tensors: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[nn.Module, LoadReport]:
    model, config, arguments = class_of(backbone.name, backbone.description)
    with quiet_transformers():
        network, found = model.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **arguments,
        )
    wrong = set(found["missing_keys"]) | {entry[0] for entry in found["mismatched_keys"]}
    matched = [name for name in target if name not in wrong]
    return network, load_report(target, matched, found["unexpected_keys"])


def _json_of(name: str, file_name: str) -> dict[str, Any]:
    if name.startswith(HUGGING_FACE):
        return read_description(hub_file(name.removeprefix(HUGGING_FACE), (file_name,), INSTEAD))
    return read_description(Path(name) / file_name)


def _weights_of(name: str) -> Path:
    """The weight file, or the index of several, on the hub or in the directory."""
    if name.startswith(HUGGING_FACE):
        return hub_file(name.removeprefix(HUGGING_FACE), FILES, INSTEAD)
    for file_name in FILES:
        if (Path(name) / file_name).is_file():
            return Path(name) / file_name
    return weight_file(Path(name))


def _content(name: str, file: Path) -> dict[str, Any]:
    """The tensors of a weight file, or of all the files that an index names."""
    if file.suffix != ".json":
        return read_weights(file)
    parts = sorted(set(read_description(file).get("weight_map", {}).values()))
    content: dict[str, Any] = {}
    for part in parts:
        on_hub = name.startswith(HUGGING_FACE) and file.name in FILES
        path = hub_file(name.removeprefix(HUGGING_FACE), (part,), INSTEAD) if on_hub else file.parent / Path(part).name
        if not path.is_file():
            raise UserError(f"The weights {file} name a file {part} that is not there: fetch it too.")
        content |= read_weights(path)
    return content
