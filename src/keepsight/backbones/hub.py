"""Published weights and descriptions: from the hub's local cache, else from the hub. Knows no network architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch

from keepsight.backbones.weights import read_weights
from keepsight.core import UserError
from keepsight.core.progress import log

FILE_NAMES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""Where a repository on the hub keeps its weights, in timm's order of preference."""

TIMEOUT = 10.0
"""Seconds within which the hub must answer."""


def hub_weights(name: str, cfg: Any, instead: str) -> dict[str, Any]:
    """The weights that timm's `cfg` (its PretrainedCfg of `name`) points to.

    Args:
        name: timm's name, for messages.
        cfg: timm's PretrainedCfg.
        instead: What a user without a hub can do, for the message.

    Raises:
        UserError: Nothing is published under this name, or the hub cannot be reached.
    """
    if not (cfg.hf_hub_id or cfg.url):
        raise UserError(f"No pretrained weights are published for {name}: give {instead}, or weights=random.")
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else FILE_NAMES
    for file_name in names if cfg.hf_hub_id else ():
        cached = huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, file_name)
        if isinstance(cached, str):
            return read_weights(Path(cached))
    log.info("fetching the weights of %s from the model hub (once)", name)
    try:
        if not cfg.hf_hub_id:
            return dict(torch.hub.load_state_dict_from_url(cfg.url, map_location="cpu", weights_only=True))
        # The download itself tries for most of a minute before it gives up; this question fails at once.
        huggingface_hub.HfApi().model_info(cfg.hf_hub_id, timeout=TIMEOUT)
        where = (cfg.hf_hub_id, cfg.hf_hub_filename) if cfg.hf_hub_filename else (cfg.hf_hub_id,)
        return dict(timm.models.load_state_dict_from_hf(*where, weights_only=True))
    except Exception as error:  # clients of hubs raise errors of many libraries
        raise UserError(
            f"The weights of {name} cannot be fetched from the model hub ({type(error).__name__}): give {instead}."
        ) from error


def hub_file(repository: str, names: Sequence[str], instead: str) -> Path:
    """The first of the named files that a repository holds, in the hub's local cache; fetched first if it is not there.

    Args:
        repository: ``ORG/NAME``.
        names: File names, the preferred one first.
        instead: What a user without a hub can do, for the message.

    Raises:
        UserError: There is no such file, or the hub cannot be reached.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    try:
        siblings = huggingface_hub.HfApi().model_info(repository, timeout=TIMEOUT).siblings or []
        held = {sibling.rfilename for sibling in siblings}
        found = next((name for name in names if name in held), None)
        if found is not None:
            log.info("fetching %s of %s from the model hub (once)", found, repository)
            return Path(huggingface_hub.hf_hub_download(repository, found))
    except Exception as error:  # clients of hubs raise errors of many libraries
        raise UserError(
            f"{repository} cannot be fetched from the model hub ({type(error).__name__}): check the name and the network, or "
            f"give {instead}."
        ) from error
    raise UserError(
        f"{repository} on the model hub holds no {' or '.join(names)}: choose another model, or give {instead}."
    )
