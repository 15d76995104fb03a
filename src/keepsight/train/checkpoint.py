"""Checkpoints that survive a kill at any moment: written aside, flushed, renamed, with a completeness marker.

A checkpoint is a folder ``step-NNNNNNNN`` with ``model.safetensors`` (trained weights and buffers), ``state.pt`` (optimizers,
random states, step and the trainer's own counters; read with weights_only) and ``COMPLETE`` (sha256 of the other two).
Knows nothing of the loop.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from keepsight.core.files import atomic_directory, is_sound
from keepsight.core.progress import log


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers: what training changes. Frozen weights come from where they came from."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: _whole(t).cpu().contiguous() for name, t in module.state_dict().items() if name not in frozen}


def _whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered where processes hold a share each (then every process must call this)."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    whole: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return whole


def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a `trained_state` back; raises RuntimeError if any name is missing or unknown."""
    expected = set(trained_state(module))
    if expected != set(state):
        raise RuntimeError(f"the checkpoint's tensors differ from the model's: {sorted(expected ^ set(state))[:5]}")
    module.load_state_dict(state, strict=False)


def random_states() -> dict[str, Any]:
    """States of all generators a training step may draw from, in types that load with weights_only."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(internal), gauss],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(trained weights, state)."""
        state: dict[str, Any] = torch.load(self.path / "state.pt", weights_only=True, map_location="cpu")
        return load_file(self.path / "model.safetensors"), state


def save_checkpoint(root: Path, step: int, model: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint after `step` steps and remove all but the newest `keep`."""
    path = root / f"step-{step:08d}"
    with atomic_directory(path, sealed=True) as temporary:
        save_file(model, temporary / "model.safetensors")
        with (temporary / "state.pt").open("wb") as file:  # given a path, torch would hide why writing failed
            torch.save(state, file)
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return path


def last_good_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint whose marker is there and whose files match it; damaged ones are named and passed over."""
    paths = sorted(root.glob("step-*"), reverse=True)
    for path in paths:
        if is_sound(path):
            return Checkpoint(path, int(path.name.removeprefix("step-")))
        log.warning("checkpoint %s is damaged or incomplete and is passed over", path)
    if paths:
        log.warning("no checkpoint in %s is whole: its training starts again", root)
    return None
