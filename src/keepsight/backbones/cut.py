"""A backbone in two parts: `prefix` runs its lower blocks, `resume` goes on from there. Knows no method and no cache.

What stays frozen below a tuned block gives the same state for the same image every time: it is run once and kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from keepsight.core import Backbone, Features, UserError


class _Reached(Exception):  # noqa: N818 - a way out of the network, not an error
    def __init__(self, state: Tensor) -> None:
        self.state = state


def can_cut(backbone: Backbone) -> bool:
    """Whether `prefix` and `resume` work on it."""
    return len(backbone.block_modules()) == backbone.depth


def prefix(backbone: Backbone, images_BCHW: Tensor, block: int) -> Tensor:
    """The state [B, ...] that block `block + 1` gets: what `block` blocks make of the images; later blocks are not run.

    Raises:
        UserError: The network is not a sequence of blocks.
    """
    modules = _modules(backbone, block)

    def leave(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        del module
        raise _Reached(arguments[0])

    hook = modules[block].register_forward_pre_hook(leave, prepend=True)  # before prompts are put in
    try:
        backbone(images_BCHW, (backbone.depth,))
    except _Reached as reached:
        return reached.state
    finally:
        hook.remove()
    raise RuntimeError(f"block {block + 1} of {backbone.name} was never run")


def resume(backbone: Backbone, state: Tensor, block: int, blocks: tuple[int, ...]) -> tuple[Features, ...]:
    """`backbone(images, blocks)` of the images whose ``prefix(backbone, images, block)`` is `state`; every block > `block`.

    The network runs on blank images, whose embedding is thrown away (2 % of the work of six blocks of a ViT-S/14), the lower
    blocks pass, and block `block + 1` gets the state. So positions, rotary embeddings and norms are the network's own.
    """
    if not all(b > block for b in blocks):
        raise ValueError(f"blocks {blocks} are not all above block {block}")
    modules = _modules(backbone, block)

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return (state, *arguments[1:])

    size = backbone.preprocessing.size
    blank_BCHW = torch.zeros(1, 1, 1, 1, dtype=state.dtype, device=state.device).expand(len(state), 3, size, size)
    hook = modules[block].register_forward_pre_hook(enter, prepend=True)  # before prompts are put in
    try:
        with _passing(modules[:block]):
            features: tuple[Features, ...] = backbone(blank_BCHW, blocks)
            return features
    finally:
        hook.remove()


@contextlib.contextmanager
def _passing(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Within the block these modules return their first argument."""

    def same(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        del arguments, named
        return x

    kept = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = same
    try:
        yield
    finally:
        for module, forward in zip(modules, kept, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _modules(backbone: Backbone, block: int) -> tuple[nn.Module, ...]:
    if not can_cut(backbone):
        raise UserError(
            f"The backbone {backbone.name} is not one sequence of blocks, so it cannot go on from the middle: use it without "
            "cached lower blocks (views=0)."
        )
    if not 0 <= block < backbone.depth:
        raise ValueError(f"block {block} is not among 0 to {backbone.depth - 1}")
    return backbone.block_modules()
