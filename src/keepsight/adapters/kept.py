"""Adapters that stay in the tuned network, since they cannot be merged: put in, found again, taken out. Knows no method."""

from __future__ import annotations

from torch import Tensor

from keepsight.adapters.adaptformer import AdaptFormer, AdaptFormerConfig, add_adaptformer
from keepsight.adapters.blocks import block_adapters
from keepsight.adapters.prompts import Prompts, VptConfig, add_prompts
from keepsight.core import Backbone, Config


class KeptAdapters(Config):
    """Which adapters a network keeps; their weights are among the network's own.

    Attributes:
        blocks: The blocks that carry them, from 1.
        adaptformer: Set where they are AdaptFormer's.
        vpt: Set where they are prompts.
    """

    blocks: tuple[int, ...]
    adaptformer: AdaptFormerConfig | None = None
    vpt: VptConfig | None = None

    def add(self, backbone: Backbone) -> None:
        """Put such adapters into the backbone, in place, with fresh weights.

        Raises:
            UserError: The backbone does not take them.
            ValueError: It has no such blocks.
        """
        if not self.blocks or not all(1 <= block <= backbone.depth for block in self.blocks):
            raise ValueError(f"blocks {self.blocks} are not among 1 to {backbone.depth}")
        if self.adaptformer is not None:
            add_adaptformer(backbone, self.blocks, self.adaptformer)
        if self.vpt is not None:
            add_prompts(backbone, self.blocks, self.vpt)


def kept_adapters(backbone: Backbone) -> KeptAdapters | None:
    """What the backbone carries; None for an ordinary one."""
    blocks, adaptformer, vpt = set(), None, None
    for number, module in enumerate(backbone.block_modules(), 1):
        for child in module.children():
            if isinstance(child, AdaptFormer):
                adaptformer = child.config
                blocks.add(number)
            elif isinstance(child, Prompts):
                vpt = child.config
                blocks.add(number)
    if not blocks:
        return None
    return KeptAdapters(blocks=tuple(sorted(blocks)), adaptformer=adaptformer, vpt=vpt)


def adapter_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """The adapters' own part of the network's state dict."""
    prefixes = tuple(f"{name}." for name in block_adapters(backbone))
    return {name: tensor for name, tensor in backbone.network.state_dict().items() if name.startswith(prefixes)}
