"""Weights of a file into a network: safe reading, foreign names, and the load contract. Knows no hub and no package."""

from __future__ import annotations

import argparse
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from keepsight.core import UserError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "target_encoder", "encoder", "student")
"""Keys under which training scripts keep the weights, beside optimizer states and arguments."""

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "teacher.",
    "student.",
    "backbone.",
    "network.",
    "encoder.",
    "image_encoder.",
    "visual.",
    "trunk.",
)
"""What wrappers (distributed training, compilation, a larger model) put before the names."""

PREFIX_DEPTH = 4

PICKLED_CODE = ("GLOBAL", "unrecognized function", "unsupported class")
"""What torch says when a file wants to call something."""

DEFAULTED = "num_batches_tracked"
"""A counter that old files lack and that no output depends on."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How much of a network a file filled.

    Attributes:
        keys_loaded: Tensors filled.
        keys_total: Tensors of the network.
        parameters_loaded: Numbers in the filled tensors.
        parameters_total: Numbers in all tensors of the network.
        unused: Names in the file that the network has no place for (a classifier, a decoder, another tower).
        missing: Names of the network that were not filled.
    """

    keys_loaded: int
    keys_total: int
    parameters_loaded: int
    parameters_total: int
    unused: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        millions = self.parameters_loaded / 1e6
        share = self.parameters_loaded / self.parameters_total
        return f"{self.keys_loaded} of {self.keys_total} tensors, {millions:.2f} M numbers ({share:.1%})"


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a weight file; pickled code in it is never run.

    Raises UserError if the file cannot be read, is of another kind, or holds more than tensors and plain data.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"The weights {path} are of an unknown kind: expected a file ending in {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        # Training scripts store their arguments beside the weights; a Namespace holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickle protocols: what matters is whether it can be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling the bytes of another kind of file raises nearly anything (KeyError, ...)
        if any(sign in str(error) for sign in PICKLED_CODE):
            raise UserError(
                f"The weights {path} hold pickled code, which keepsight never runs: save the state dict alone, "
                f"best as .safetensors."
            ) from error
        raise UserError(f"The weights {path} cannot be read: the file is damaged or not a weight file.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"The weights {path} are a {type(content).__name__}: expected a state dict (names and tensors)."
        )
    return content


def hash_weights(network: nn.Module) -> str:
    """Sha256 (hex) over the names, shapes, dtypes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fill(
    network: nn.Module,
    architecture: str,
    content: Mapping[str, Any],
    *,
    source: str,
    allow_partial: bool,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> LoadReport:
    """Copy the file's tensors into the network, whatever wrapper or known foreign format they come in.

    Each container and prefix is tried through timm's own converter for the architecture (official DINOv2, CLIP, MAE,
    RADIO...; it also resamples position grids), or through `convert` instead; the reading that fills most wins.

    Raises UserError if less than all of the network is filled, unless `allow_partial`; and always if nothing is.
    """
    target = {name: t for name, t in network.state_dict().items() if not name.endswith(DEFAULTED)}
    best: dict[str, Tensor] = {}
    matched: list[str] = []
    for stripped in readings(content):
        candidate = convert(stripped) if convert else _converted(stripped, architecture, network)
        fits = [name for name, t in target.items() if name in candidate and candidate[name].shape == t.shape]
        if not matched or len(fits) > len(matched):
            best, matched = candidate, fits
        if len(matched) == len(target):
            break
    report = load_report(target, matched, set(best) - set(matched))
    if not matched or (report.missing and not allow_partial):
        raise UserError(shortfall(report, best, target, architecture, source))
    network.load_state_dict({name: best[name] for name in matched}, strict=False)
    return report


def load_report(target: Mapping[str, Tensor], matched: Iterable[str], unused: Iterable[str]) -> LoadReport:
    """The report on a network with the tensors `target`, of which those named in `matched` were filled."""
    found = set(matched)
    return LoadReport(
        keys_loaded=len(found),
        keys_total=len(target),
        parameters_loaded=sum(target[name].numel() for name in found),
        parameters_total=sum(t.numel() for t in target.values()),
        unused=tuple(sorted(unused)),
        missing=tuple(name for name in target if name not in found),
    )


def shortfall(
    report: LoadReport, found: Mapping[str, Tensor], target: Mapping[str, Tensor], architecture: str, source: str
) -> str:
    """What the user is told when `found` did not fill `target`."""

    def describe(name: str) -> str:
        if name not in found:
            return name
        return f"{name} (shape {list(found[name].shape)} where {list(target[name].shape)} is expected)"

    examples = ", ".join(describe(name) for name in report.missing[:3])
    advice = "check the architecture"
    if report.keys_loaded:
        advice += ", or set backbone.allow_partial=true to keep random values there"
    return (
        f"The weights of {source} fill only {report} of {architecture}; "
        f"not filled are {examples}{' and others' if len(report.missing) > 3 else ''}: {advice}."
    )


def readings(content: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Every plausible state dict in the file: of each container, as it is and without each known prefix."""
    for container in _containers(content):
        yield from _stripped(container, PREFIX_DEPTH)


def _containers(content: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The tensors at the top, then those of known containers, to any depth."""
    if tensors := {str(name): t for name, t in content.items() if isinstance(t, Tensor)}:
        yield tensors
    for name in CONTAINERS:
        if isinstance(inner := content.get(name), Mapping):
            yield from _containers(inner)


def _stripped(tensors: dict[str, Tensor], depth: int) -> Iterator[dict[str, Tensor]]:
    """The tensors themselves, then those under each known prefix, without it."""
    yield tensors
    for prefix in PREFIXES if depth else ():
        if inner := {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}:
            yield from _stripped(inner, depth - 1)


def _converted(tensors: dict[str, Tensor], architecture: str, network: nn.Module) -> dict[str, Tensor]:
    """Through timm's converter for the architecture's family, where it has one."""
    module = sys.modules[timm.models.model_entrypoint(architecture).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        converted = convert(dict(tensors), network, **_converter_options(architecture))
    except Exception:  # a converter may fail in any way on names it does not know: then nothing was to be converted
        return tensors
    return {name: t for name, t in converted.items() if isinstance(t, Tensor)}


def _converter_options(architecture: str) -> dict[str, Any]:
    """How timm itself calls the converter of these families (it does not publish it)."""
    if "radio" in architecture and not architecture.startswith("naflex"):
        corners = any(n in architecture for n in ("base_patch16_radio_v3", "huge_patch16_radio_v3"))
        return {"interpolation": "bilinear", "antialias": False, "align_corners": corners}
    if "flexivit" in architecture:
        return {"interpolation": "bilinear", "antialias": False}
    if "deit" in architecture:
        return {"adapt_layer_scale": True}
    return {}
