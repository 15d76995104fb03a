"""AdaptFormer: a small bottleneck beside the MLP of each block, which alone is trained. Knows no method."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn

from keepsight.adapters.blocks import BlockAdapter, blank_pass, shape_of
from keepsight.core import Backbone, Config, UserError

NAME = "adaptformer"
"""What the adapter is called within its block."""


class AdaptFormerConfig(Config):
    """MLP(x) + scale * up(relu(down(x))) in place of MLP(x) (Chen et al. 2022, arXiv 2205.13535, eq. 3 and 4).

    Attributes:
        bottleneck: Width of the bottleneck.
        scale: Factor on the branch.
    """

    bottleneck: int = Field(default=64, ge=1)
    scale: float = Field(default=0.1, gt=0)


@final
class AdaptFormer(BlockAdapter):
    """The branch of one block; zero until a step is taken, since `up` starts at zero.

    It sees what the MLP sees (the normed tokens) and is added to what the MLP gives: where the block scales that (LayerScale),
    the branch is scaled with it.

    Args:
        mlp: Of the block.
        width: D.
        config: See `AdaptFormerConfig`.
    """

    def __init__(self, mlp: nn.Module, width: int, config: AdaptFormerConfig) -> None:
        super().__init__()
        like = next(mlp.parameters())
        self.config = config
        self.down = nn.Linear(width, config.bottleneck, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(config.bottleneck, width, device=like.device, dtype=like.dtype)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self._hook = mlp.register_forward_hook(self.beside)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        added: Tensor = self.config.scale * self.up(torch.relu(self.down(x)))
        return added

    def beside(self, mlp: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The hook on the MLP."""
        del mlp
        return output + self(arguments[0]) if self.on else None

    def remove(self) -> None:
        """See `BlockAdapter`."""
        self._hook.remove()


def add_adaptformer(backbone: Backbone, blocks: tuple[int, ...], config: AdaptFormerConfig) -> None:
    """Give these blocks (1 to depth) an `AdaptFormer`, in place; nothing else is trained that was not before.

    Raises:
        UserError: A block has no MLP that takes and gives tokens [B, T, D].
    """
    modules = backbone.block_modules()
    mlps = {block: dict(modules[block - 1].named_children()).get("mlp") for block in blocks}
    widths = _widths(backbone, mlps)
    for block, mlp in mlps.items():
        if mlp is None or block not in widths:
            raise UserError(
                f"AdaptFormer goes beside the MLP of a transformer block, and block {block} of {backbone.name} has none: use "
                "finetune-lora or finetune-full."
            )
    for block, mlp in mlps.items():
        assert mlp is not None
        modules[block - 1].add_module(NAME, AdaptFormer(mlp, widths[block], config))


def _widths(backbone: Backbone, mlps: dict[int, nn.Module | None]) -> dict[int, int]:
    """D of each MLP that is run, and maps tokens [B, T, D] to tokens of the same shape."""
    found: dict[int, int] = {}

    def look(block: int, arguments: tuple[Any, ...], output: Any) -> None:
        before, after = shape_of(arguments), shape_of(output)
        if isinstance(output, Tensor) and before == after and len(after) == 3:
            found[block] = after[-1]

    hooks = [
        mlp.register_forward_hook(lambda _, arguments, output, block=block: look(block, arguments, output))
        for block, mlp in mlps.items()
        if mlp is not None
    ]
    try:
        if hooks:
            blank_pass(backbone, max(mlps))
    finally:
        for hook in hooks:
            hook.remove()
    return found
