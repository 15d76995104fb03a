"""PEFT's orthogonal adapters on the query and value projections: rotations (OFT) and subspaces (OSF). Knows no method."""

from __future__ import annotations

import math

from peft import OFTConfig, OSFConfig, PeftModel
from pydantic import Field
from torch import nn

from keepsight.adapters.lora import adapted_layers, split_qkv, wrapped
from keepsight.core import Backbone, Config, Readout, UserError


class OftConfig(Config):
    """W R in place of W, with a block-diagonal rotation R of each adapted layer's input (Qiu et al. 2023, arXiv 2306.07280).

    Rotations keep the angles between the rows of W, and with them the pretrained "hyperspherical energy".

    Attributes:
        block_size: Side of R's blocks; lowered to a divisor of the layers' input widths.
        exact: The Cayley transform with a matrix inverse, which is a rotation exactly; otherwise a series of five terms, faster.
        targets: Regular expression over full module names, or None for q and v of every attention layer that the readout
            reaches.
    """

    block_size: int = Field(default=32, ge=2)
    exact: bool = True
    targets: str | None = None


class OsfConfig(Config):
    """The largest singular directions of each adapted weight stay, the others are trained (Nayak et al. 2025, arXiv 2504.07097).

    PEFT projects the gradients onto what is orthogonal to the directions that stay. AdamW's steps are not exactly in the gradients'
    subspace, and what little of them leaves it is not taken back.

    Attributes:
        kept: Share of the singular directions that stay.
        targets: Regular expression over full module names, or None for q and v of every attention layer that the readout
            reaches.
    """

    kept: float = Field(default=0.5, gt=0, lt=1)
    targets: str | None = None


def add_oft(backbone: Backbone, readout: Readout, config: OftConfig, first_block: int = 1) -> PeftModel:
    """Freeze the backbone and put rotations into its blocks from `first_block` on, in place; they start at the identity.

    Raises:
        UserError: Nothing matched, or the layers' widths have no common divisor up to `config.block_size`.
    """
    backbone.requires_grad_(False)
    split_qkv(backbone.network)
    names = adapted_layers(backbone, readout, config.targets, first_block, "OFT")
    size = _block_size(backbone, names, config.block_size)
    settings = OFTConfig(oft_block_size=size, use_cayley_neumann=not config.exact, target_modules=names, bias="none")
    return wrapped(backbone, settings)


def _block_size(backbone: Backbone, names: list[str], largest: int) -> int:
    layers = [backbone.network.get_submodule(name) for name in names]
    width = math.gcd(*(layer.in_features for layer in layers if isinstance(layer, nn.Linear)))
    size = next(n for n in range(min(largest, width), 0, -1) if width % n == 0)
    if size < 2:
        raise UserError(
            f"OFT finds no block size from 2 to {largest} that divides the widths of the adapted layers of {backbone.name}: raise "
            "oft.block_size, or choose other layers with oft.targets=REGEX."
        )
    return size


def add_osf(backbone: Backbone, readout: Readout, config: OsfConfig, first_block: int = 1) -> PeftModel:
    """Freeze the backbone and train the lower singular directions of layers from `first_block` on, in place.

    The output does not change until a step is taken (up to rounding).

    Raises:
        UserError: Nothing matched.
    """
    backbone.requires_grad_(False)
    split_qkv(backbone.network)
    names = adapted_layers(backbone, readout, config.targets, first_block, "OSF")
    return wrapped(backbone, OSFConfig(effective_rank=config.kept, target_modules=names))
