"""The network that a tuned one came from: what it saw in the same images. One pass a step, however many penalties ask."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor, nn

from keepsight.core import Backbone, Features
from keepsight.methods.encoder import TunedBackbone


class Reference(nn.Module):
    """Features of the untouched network.

    With adapters it is the tuned network itself with the adapters off, and takes no memory. Otherwise it is a copy of the
    backbone as it is now, which shares every weight that is not trained.

    Args:
        encoder: Of the method; not trained yet.
        kept_mib: Features of so much memory are kept by the content of the inputs, so that images that come again in the same
            view (`views` of the settings, cached states) pass once; 0 keeps nothing, since with fresh augmentation nothing
            comes again.
    """

    def __init__(self, encoder: TunedBackbone, kept_mib: int = 0) -> None:
        super().__init__()
        self._encoder = [encoder]  # a list hides it from nn.Module: it belongs to the method
        self.frozen: Backbone | None = None
        if not encoder.has_adapters:
            shared = {id(p): p for p in encoder.backbone.parameters() if not p.requires_grad}
            self.frozen = copy.deepcopy(encoder.backbone, dict(shared)).requires_grad_(False).eval()
        self._room = kept_mib * 2**20
        self._kept: dict[tuple[bytes, tuple[int, ...]], dict[int, Features]] = {}
        self.passed = 0
        """Images that went through the network so far."""

    def layers(self, inputs: Tensor, blocks: tuple[int, ...] = ()) -> dict[int, Features]:
        """`Features` of the readout's blocks and of these, without gradients."""
        if not self._room and not self._kept:
            return self._pass(inputs, blocks)
        keys = [(_digest(row), blocks) for row in inputs]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        fresh: dict[tuple[bytes, tuple[int, ...]], dict[int, Features]] = {}
        if missing:
            found = self._pass(inputs[missing], blocks)
            for place, i in enumerate(missing):
                fresh[keys[i]] = {b: _row(f, place) for b, f in found.items()}
        rows = [self._kept[key] if key in self._kept else fresh[key] for key in keys]
        for key, row in fresh.items():
            size = sum(
                f.cls.numel() * f.cls.element_size() + f.patches.numel() * f.patches.element_size()
                for f in row.values()
            )
            if size <= self._room:
                self._room -= size
                self._kept[key] = row
        return {block: _stacked([row[block] for row in rows]) for block in rows[0]}

    def features(self, inputs: Tensor) -> Tensor:
        """Read-out features [B, F], without gradients."""
        return self.read(self.layers(inputs))

    def read(self, layers: dict[int, Features]) -> Tensor:
        """The readout [B, F] of what `layers` gave."""
        readout = self._encoder[0].readout
        return readout.read(tuple(layers[block] for block in readout.blocks))

    def _pass(self, inputs: Tensor, blocks: tuple[int, ...]) -> dict[int, Features]:
        self.passed += len(inputs)
        encoder = self._encoder[0]
        with torch.no_grad():
            if self.frozen is not None:
                return encoder.layers(inputs, blocks, self.frozen)
            with encoder.untouched():
                return encoder.layers(inputs, blocks)

    def train(self, mode: bool = True) -> Reference:
        """It stays in evaluation mode."""
        del mode
        return super().train(False)


def _digest(row: Tensor) -> bytes:
    return hashlib.blake2b(row.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _row(features: Features, place: int) -> Features:
    """One image's, in memory of its own."""
    return Features(features.cls[place : place + 1].clone(), features.patches[place : place + 1].clone(), features.grid)


def _stacked(rows: list[Features]) -> Features:
    return Features(torch.cat([r.cls for r in rows]), torch.cat([r.patches for r in rows]), rows[0].grid)
