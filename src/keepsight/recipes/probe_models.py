"""What probes are asked of: a network at any input size, and the untouched one that it came from. Knows no probe.

A tuned network at another input size has the positions of the untouched one at that size, and what tuning changed of them
resampled: otherwise the resampling of positions, and not the tuning, would be measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from keepsight.adapters.kept import kept_adapters
from keepsight.backbones.load import BackboneConfig, build_backbone, load_backbone
from keepsight.backbones.open_clip_models import OpenClipBackbone
from keepsight.backbones.text import load_text_tower
from keepsight.core import Backbone, TextTower, UserError
from keepsight.core.progress import log


@dataclass(slots=True)
class Asked:
    """A network that probes are asked of.

    Attributes:
        title: What a user called it.
        untouched: What to load: of a named backbone itself, of a tuned one what it came from.
        own: The network at its own input size.
        tuned: Whether `own` has other weights than `untouched` gives.
        weights: Hash of the untouched weights that it was tuned from, where it was recorded.
        trained_on: What is known of the images that it was tuned on (`origin.sketch`).
        scenes: The data of a run of ViSFT.
    """

    title: str
    untouched: BackboneConfig
    own: Backbone
    tuned: bool = False
    weights: str | None = None
    trained_on: tuple[str, ...] = ()
    scenes: str | None = None
    _last: tuple[tuple[int | None, bool], Backbone] | None = field(default=None, repr=False)
    _stride: int | None = field(default=None, repr=False)
    _first: Backbone | None = field(default=None, repr=False)

    def at(self, size: int | None, squash: bool) -> Backbone:
        """The network at an input size, rounded up to whole patches; None is its own.

        Raises:
            UserError: It does not take that size, or the untouched network that its positions come from cannot be had.
        """
        if self._last is None or self._last[0] != (size, squash):
            self._last = (size, squash), self._made(size, squash)
        return self._last[1]

    def _made(self, size: int | None, squash: bool) -> Backbone:
        own = self.own
        fit = "squash" if squash else own.preprocessing.fit
        side = own.preprocessing.size if size is None else -(-size // self._patch()) * self._patch()
        if size is not None and side != size:
            log.info("%s: %d px in place of %d, for whole patches of %d px", self.title, side, size, self._patch())
        if (side, fit) == (own.preprocessing.size, own.preprocessing.fit):
            return own
        wanted = self.untouched.model_copy(update={"size": side, "fit": fit})
        if not self.tuned:
            return load_backbone(wanted)
        try:
            return resized(own, self.first(), load_backbone(wanted))
        except UserError as error:
            raise UserError(
                f"{self.title} was tuned at {own.preprocessing.size} px and cannot be probed at {side} px: {error}"
            ) from error

    def first(self) -> Backbone:
        """The untouched network at the size of `own`.

        Raises:
            UserError: It cannot be had, or it is not the one that was tuned.
        """
        if self._first is None:
            found = load_backbone(self.untouched.model_copy(update={"size": self.own.preprocessing.size}))
            if self.weights is not None and (hashed := found.weights_hash()) != self.weights:
                raise UserError(
                    f"The weights that {self.untouched.name} gives now (sha256 {hashed[:12]}) are not those that {self.title} was "
                    f"tuned from ({self.weights[:12]}): restore them, or give what to compare with by --against."
                )
            self._first = found
        return self._first

    def _patch(self) -> int:
        if self._stride is None:
            own, size = self.own, self.own.preprocessing.size
            device = next(own.parameters()).device
            with torch.inference_mode():
                (features,) = own.eval()(torch.zeros(1, 3, size, size, device=device), (own.depth,))
            self._stride = max(1, size // features.grid[0])
        return self._stride

    def text(self) -> tuple[TextTower | None, str]:
        """The text tower that belongs to the network; and a sentence, where there should be one and cannot be had."""
        if not isinstance(self.own, OpenClipBackbone):
            return None, ""
        weights = "pretrained" if self.untouched.weights == "random" else self.untouched.weights
        try:
            return load_text_tower(self.untouched.name, weights=weights), ""
        except UserError as error:
            return None, f"{self.title} is taken without its text tower: {error}"


def resized(tuned: Backbone, first: Backbone, wanted: Backbone) -> Backbone:
    """The tuned network with the input of `wanted`.

    Args:
        tuned: At its own size.
        first: The untouched network at that size.
        wanted: The untouched network at the other size.

    Raises:
        UserError: The networks differ, or something that depends on the size is no position grid and was tuned.
    """
    made = build_backbone(tuned.spec() | {"preprocessing": wanted.preprocessing.model_dump_json()})
    if (kept := kept_adapters(tuned)) is not None:
        kept.add(made)
    state, before, after = (network.network.state_dict() for network in (tuned, first, wanted))
    filled: dict[str, Tensor] = {}
    for name, target in made.network.state_dict().items():
        value = state[name].cpu()
        if value.shape == target.shape:
            filled[name] = value
            continue
        if name not in before or name not in after or before[name].shape != value.shape:
            raise UserError(f"its {name} is not of the network that it is said to come from.")
        filled[name] = after[name].cpu() + _carried(value - before[name].cpu(), after[name], name)
    made.network.load_state_dict(filled, strict=True)
    return made.eval()


def _carried(change: Tensor, like: Tensor, name: str) -> Tensor:
    """A change of positions [1, N, D] or [N, D] on another grid."""
    if not bool(change.any()):
        return torch.zeros_like(like, device="cpu")
    change_1ND = change if change.ndim == 3 else change[None]
    old, new = change_1ND.shape[1], like.shape[-2]
    side, prefix = math.isqrt(new), old - math.isqrt(old) ** 2
    if change_1ND.ndim != 3 or side**2 + prefix != new:
        raise UserError(f"its {name} depends on the size and was tuned.")
    resampled: Tensor = resample_abs_pos_embed(change_1ND, new_size=[side, side], num_prefix_tokens=prefix)
    return resampled.reshape(like.shape)
