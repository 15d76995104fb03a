"""Penalties on the tokens and feature maps of single blocks. They know no backbone and no method."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from keepsight.core import Features, Penalty, Seen, processes
from keepsight.methods.penalty_parts import About, RetentionConfig, precise, resolved_blocks
from keepsight.objectives import invariance


class LdifsConfig(RetentionConfig):
    """Settings of `Ldifs`.

    Attributes:
        blocks: Which blocks (negative ones from the last that the readout reaches); none is the four quarters of the depth.
        tokens: Which of their tokens; with "all", class token and patches count the same.
    """

    name: Literal["ldifs"] = "ldifs"
    weight: float = Field(default=40.0, ge=0)
    blocks: tuple[int, ...] = ()
    tokens: Literal["all", "cls", "patches"] = "all"


class Ldifs(Penalty):
    """The directions of several blocks' tokens stay: mean ||x/||x|| - x0/||x0||||^2.

    Args:
        config: See `LdifsConfig`.
        about: The depth.
    """

    def __init__(self, config: LdifsConfig, about: About) -> None:
        super().__init__()
        self.config = config
        self.blocks = resolved_blocks(config.blocks, about.depth, config.name)

    def _tokens(self, features: Features) -> list[Tensor]:
        wanted = {"all": [features.cls, features.patches], "cls": [features.cls], "patches": [features.patches]}
        return [precise(x) for x in wanted[self.config.tokens]]

    def forward(self, seen: Seen) -> Tensor:
        """The distance, for any number of images."""
        layers = [x for block in self.blocks for x in self._tokens(seen.layers[block])]
        layers0 = [x for block in self.blocks for x in self._tokens(seen.layers0[block])]
        return processes.averaged(invariance.layerwise_distance(layers, layers0))


class DeltaConfig(RetentionConfig):
    """Settings of `Delta`.

    Attributes:
        blocks: As for ldifs.
        attention: Channels weigh as much as they vary in the untouched network ("activation"), or the same ("uniform").
    """

    name: Literal["delta"] = "delta"
    weight: float = Field(default=32.0, ge=0)
    blocks: tuple[int, ...] = ()
    attention: Literal["activation", "uniform"] = "activation"


class Delta(Penalty):
    """Feature maps of several blocks stay where they were, important channels above all (DELTA; the attention is a reconstruction).

    Args:
        config: See `DeltaConfig`.
        about: The depth.
    """

    def __init__(self, config: DeltaConfig, about: About) -> None:
        super().__init__()
        self.config = config
        self.blocks = resolved_blocks(config.blocks, about.depth, config.name)

    def _distance(self, map_BND: Tensor, map0_BND: Tensor) -> Tensor:
        map_BND, map0_BND = processes.gathered(precise(map_BND)), processes.gathered(precise(map0_BND))
        uniform = self.config.attention == "uniform"
        weight_D = map0_BND.new_ones(map0_BND.shape[2]) if uniform else invariance.activation_attention(map0_BND)
        return invariance.weighted_map_distance(map_BND, map0_BND, weight_D)

    def forward(self, seen: Seen) -> Tensor:
        """The mean over blocks, for any number of images of more than one patch."""
        return torch.stack(
            [self._distance(seen.layers[b].patches, seen.layers0[b].patches) for b in self.blocks]
        ).mean()
