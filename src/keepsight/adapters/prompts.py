"""Visual prompt tuning: trained tokens beside the image's own, in every block or from one block on. Knows no method."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn

from keepsight.adapters.blocks import BlockAdapter, blank_pass, shape_of
from keepsight.core import Backbone, Config, UserError

NAME = "prompts"
"""What the adapter is called within its block."""


class VptConfig(Config):
    """Trained tokens after the class and register tokens (Jia et al. 2022, arXiv 2203.12119).

    Attributes:
        tokens: P, of each block.
        deep: Every block has its own tokens, whose outputs are dropped (eq. 6 and 7); otherwise the first adapted block has the
            only ones, which go through the later blocks beside the image's (eq. 4 and 5).
    """

    tokens: int = Field(default=10, ge=1)
    deep: bool = True


class _Carried:
    """What one block's prompts became, until the next block takes it. Not a part of the network: neither saved nor copied."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Carried:
        return memo.setdefault(id(self), _Carried())  # type: ignore[no-any-return]

    def take(self) -> Tensor:
        state, self.state = self.state, None
        assert state is not None, "the block with the prompts was not run"
        return state


@final
class Prompts(BlockAdapter):
    """The prompts of one block: put in before it, taken out after it, so that nothing outside the block sees them.

    Args:
        block: The block.
        prefix: Tokens before the first patch (class and register tokens).
        tokens_PD: Where the trained tokens start; None where the block before this one passes its own on.
        config: See `VptConfig`.
        carried: Between the blocks, where prompts go through several.
        passes_on: Whether the next block takes what becomes of them.
    """

    def __init__(
        self,
        block: nn.Module,
        prefix: int,
        tokens_PD: Tensor | None,
        config: VptConfig,
        carried: _Carried,
        passes_on: bool,
    ) -> None:
        super().__init__()
        self.config, self._prefix, self._carried, self._passes_on = config, prefix, carried, passes_on
        self.tokens_PD = None if tokens_PD is None else nn.Parameter(tokens_PD)
        self._hooks = (
            block.register_forward_pre_hook(self.insert, with_kwargs=True),
            block.register_forward_hook(self.strip),
        )

    def insert(
        self, block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook before the block: [B, T, D] -> [B, T + P, D], and rotary embeddings that leave prompts as they are."""
        del block
        if not self.on:
            return None
        x_BTD, k = arguments[0], self._prefix
        if self.tokens_PD is None:
            prompts_BPD = self._carried.take()
        else:
            prompts_BPD = self.tokens_PD.to(x_BTD.dtype).expand(x_BTD.shape[0], -1, -1)
        longer = torch.cat([x_BTD[:, :k], prompts_BPD, x_BTD[:, k:]], dim=1)
        rope = named.get("rope")
        if isinstance(rope, Tensor):  # timm's: of the patches alone, sines and then cosines [..., N, 2 d]
            named = named | {"rope": _with_unrotated(rope, self.config.tokens)}
        return (longer, *arguments[1:]), named

    def strip(self, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """The hook after the block: [B, T + P, D] -> [B, T, D]."""
        del block, arguments
        if not self.on:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        first, last = self._prefix, self._prefix + self.config.tokens
        if self._passes_on:
            self._carried.state = tokens[:, first:last]
        stripped = torch.cat([tokens[:, :first], tokens[:, last:]], dim=1)
        return (stripped, *output[1:]) if isinstance(output, tuple) else stripped

    def remove(self) -> None:
        """See `BlockAdapter`."""
        for hook in self._hooks:
            hook.remove()


def add_prompts(backbone: Backbone, blocks: tuple[int, ...], config: VptConfig) -> None:
    """Give these blocks (1 to depth, one after another) prompts, in place; nothing else is trained that was not before.

    They start uniform in +- sqrt(6 / (3 p^2 + D)) for patches of p x p px, as in the paper: unlike LoRA they change the output from
    the start.

    Raises:
        UserError: The blocks do not take tokens [B, T, D], or not more of them (maps, relative positions, convolutions).
    """
    modules, carried = backbone.block_modules(), _Carried()
    refused = UserError(
        f"Prompts are additional tokens, which the blocks of {backbone.name} do not take: use finetune-lora or finetune-full."
    )
    shapes, patches, grid = _shapes(backbone, blocks)
    if len(shapes) < len(blocks) or any(len(shape) != 3 or shape[1] < patches for shape in shapes.values()):
        raise refused
    patch = backbone.preprocessing.size // grid
    like = next(backbone.network.parameters())
    for block in blocks:
        _, length, width = shapes[block]
        start = None
        if config.deep or block == blocks[0]:
            bound = math.sqrt(6 / (3 * patch**2 + width))
            start = torch.empty(config.tokens, width, device=like.device, dtype=like.dtype).uniform_(-bound, bound)
        passes_on = not config.deep and block != blocks[-1]
        module = modules[block - 1]
        module.add_module(NAME, Prompts(module, length - patches, start, config, carried, passes_on))
    try:
        fits = _shapes(backbone, blocks)[1] == patches
    except Exception as error:  # whatever a network says to a token too many
        _remove(backbone, blocks)
        raise refused from error
    if not fits:
        _remove(backbone, blocks)
        raise refused


def _remove(backbone: Backbone, blocks: tuple[int, ...]) -> None:
    for block in blocks:
        module = backbone.block_modules()[block - 1]
        prompts = module.get_submodule(NAME)
        assert isinstance(prompts, Prompts)
        prompts.remove()
        delattr(module, NAME)


def _shapes(backbone: Backbone, blocks: tuple[int, ...]) -> tuple[dict[int, tuple[int, ...]], int, int]:
    """Shapes of what the blocks get (before any prompts); patches, and the side of their grid, after the last of these blocks."""
    found: dict[int, tuple[int, ...]] = {}
    modules = backbone.block_modules()

    def look(block: int, arguments: tuple[Any, ...]) -> None:
        found[block] = shape_of(arguments)

    hooks = [
        modules[block - 1].register_forward_pre_hook(
            lambda _, arguments, block=block: look(block, arguments), prepend=True
        )
        for block in blocks
    ]
    try:
        features = blank_pass(backbone, blocks[-1])
    finally:
        for hook in hooks:
            hook.remove()
    return found, features.patches.shape[1], features.grid[0]


def _with_unrotated(rope: Tensor, count: int) -> Tensor:
    """Rotary embeddings [..., N, 2 d] with `count` before them that turn nothing (sine 0, cosine 1)."""
    sines = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1] // 2)
    return torch.cat([torch.cat([sines, torch.ones_like(sines)], dim=-1), rope], dim=-2)
