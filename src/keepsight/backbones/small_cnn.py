"""A small convolutional network without pretrained weights: what an ordinary network learns from the same labels. Knows no data."""

from __future__ import annotations

import itertools
from typing import final

import torch
from torch import Tensor, nn

from keepsight.backbones.weights import hash_weights
from keepsight.core import Backbone, Features, Preprocessing

NAME = "small_cnn"
"""What results call it."""


@final
class SmallCnn(Backbone):
    """Three blocks of 3 x 3 convolution, group norm, ReLU and 2 x 2 max pooling; `width`, 2 `width` and 4 `width` channels.

    Group norm and not batch norm: it is the same in training and in use, whatever the batch. The global token is the mean of the
    places; there is none of its own.

    Args:
        width: Channels of the first block; a multiple of 8.
        size: Side of the square input, px; at least 8.
        seed: Of the random weights; the caller's random state is left as it was.

    Example:
        >>> (features,) = SmallCnn()(torch.zeros(1, 3, 28, 28), blocks=(3,))
        >>> tuple(features.cls.shape), features.grid
        ((1, 128), (3, 3))
    """

    def __init__(self, width: int = 32, size: int = 28, seed: int = 0) -> None:
        super().__init__()
        self.name, self.depth, self._width = NAME, 3, width
        self.preprocessing = Preprocessing(size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        channels = (3, width, 2 * width, 4 * width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(*(_block(before, after) for before, after in itertools.pairwise(channels)))

    def forward(self, images_BCHW: Tensor, blocks: tuple[int, ...]) -> tuple[Features, ...]:
        """See `Backbone.forward`. Images are normalised as `preprocessing` says; ValueError for a block it lacks."""
        if not blocks or not all(1 <= b <= self.depth for b in blocks):
            raise ValueError(f"blocks {blocks} are not among 1 to {self.depth}")
        map_BDhw, found = images_BCHW, {}
        for number, block in enumerate(self.block_modules()[: max(blocks)], 1):
            map_BDhw = block(map_BDhw)
            patches_BND = map_BDhw.flatten(2).transpose(1, 2)
            found[number] = Features(patches_BND.mean(dim=1), patches_BND, (map_BDhw.shape[2], map_BDhw.shape[3]))
        return tuple(found[block] for block in blocks)

    def block_modules(self) -> tuple[nn.Module, ...]:
        """See `Backbone.block_modules`."""
        return tuple(self.network.children())

    def weights_hash(self) -> str:
        """See `Backbone.weights_hash`."""
        return hash_weights(self.network)

    def spec(self) -> dict[str, str | int | bool]:
        """See `Backbone.spec`; `SmallCnn.from_spec` reads it."""
        return {"library": "keepsight", "name": self.name, "width": self._width, "size": self.preprocessing.size}

    @classmethod
    def from_spec(cls, spec: dict[str, str | int | bool]) -> SmallCnn:
        """The architecture that `spec` described, with random weights."""
        return cls(width=int(spec["width"]), size=int(spec["size"]))


def _block(before: int, after: int) -> nn.Module:
    # Kaiming's scale keeps the size of what passes through ReLU, which torch's own default does not.
    convolution = nn.Conv2d(before, after, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2))
