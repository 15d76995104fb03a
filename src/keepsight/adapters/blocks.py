"""What adapters that live beside a backbone's blocks have in common: which blocks, off and on, alive or dead. Knows no method."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from keepsight.core import Backbone, Features, Readout, UserError


class BlockAdapter(nn.Module, ABC):
    """A trained part of one block that acts through hooks and cannot be merged into the block's weights.

    It is a child of its block, so that it is saved, moved and copied with the network. Its hooks are bound methods, so that a
    copy of the network calls the copy's own adapters.

    Attributes:
        on: Whether it acts; where it does not, the block gives what it gave before, bit for bit.
    """

    on: bool = True

    @abstractmethod
    def remove(self) -> None:
        """Take its hooks away."""


def block_adapters(backbone: Backbone) -> dict[str, BlockAdapter]:
    """The adapters of the network, by their full names."""
    return {name: module for name, module in backbone.network.named_modules() if isinstance(module, BlockAdapter)}


@contextlib.contextmanager
def switched_off(backbone: Backbone) -> Iterator[None]:
    """Within the block the network is the one it was before it got its adapters, bit for bit."""
    were = {adapter: adapter.on for adapter in block_adapters(backbone).values()}
    for adapter in were:
        adapter.on = False
    try:
        yield
    finally:
        for adapter, on in were.items():
            adapter.on = on


def check_gradients(backbone: Backbone) -> None:
    """Raise RuntimeError unless every adapter has a non-zero gradient (called after the first backward pass).

    An up-projection of zero lets no gradient through to what comes before it: an adapter is dead if none of its weights has one.
    """
    trained = {name: tuple(a.parameters()) for name, a in block_adapters(backbone).items()}
    trained = {name: weights for name, weights in trained.items() if weights}
    dead = [
        name for name, weights in trained.items() if not any(p.grad is not None and bool(p.grad.any()) for p in weights)
    ]
    if dead or not trained:
        raise RuntimeError(
            f"{len(dead)} of {len(trained)} adapters got no gradient in the first step ({', '.join(dead[:3])}): this model "
            "does not call its blocks as modules, and training would silently change nothing."
        )


def chosen_blocks(backbone: Backbone, readout: Readout, first_block: int) -> tuple[int, ...]:
    """The blocks from `first_block` on that the readout reaches.

    Raises:
        UserError: The network is not a sequence of blocks, or the readout reads a block below `first_block`.
    """
    if not backbone.block_modules():
        raise UserError(
            f"The backbone {backbone.name} is not one sequence of blocks, so blocks cannot carry adapters: use finetune-lora or "
            "finetune-full."
        )
    if min(readout.blocks) < first_block:
        raise UserError(
            f"first_block={first_block} leaves nothing to train for the readout '{readout}', which reads a lower block: lower it, "
            "or read a higher block."
        )
    return tuple(range(first_block, max(readout.blocks) + 1))


def blank_pass(backbone: Backbone, block: int) -> Features:
    """`Features` of this block for two blank images, in eval mode and without gradients."""
    size, device = backbone.preprocessing.size, next(backbone.network.parameters()).device
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            features: tuple[Features, ...] = backbone(torch.zeros(2, 3, size, size, device=device), (block,))
    finally:
        backbone.train(was_training)
    return features[0]


def shape_of(value: object) -> tuple[int, ...]:
    """Of a tensor, or of the first of a tuple; () for anything else."""
    first = value[0] if isinstance(value, tuple) and value else value
    return tuple(first.shape) if isinstance(first, Tensor) else ()
