"""The abstract backbone: images in, `Features` of the chosen blocks out. Knows no library of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from keepsight.core.config import Config
from keepsight.core.features import Features


class Preprocessing(Config):
    """How an image becomes a backbone's input: RGB, resized, cropped to size x size px, scaled to [0, 1], normalised.

    Attributes:
        size: Side of the square input, px.
        mean: Per-channel mean, in units of [0, 1].
        std: Per-channel standard deviation, in units of [0, 1].
        interpolation: Resampling filter.
        fit: ``crop`` resizes the shorter side to size / crop_fraction and takes the centre; ``squash`` resizes both sides to
            size (nothing is cut off, the aspect ratio changes); ``pad`` resizes the longer side and fills with the mean.
        crop_fraction: Share of the resized shorter side that the crop keeps.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    fit: Literal["crop", "squash", "pad"] = "crop"
    crop_fraction: float = 1.0


class Backbone(nn.Module, ABC):
    """A pretrained network that gives `Features` for any of its blocks.

    Attributes:
        name: What `load_backbone` was asked for.
        depth: Number of blocks (transformer blocks, or stages of a CNN).
        preprocessing: The input it was trained for, at the chosen size.
        network: The module that holds the weights; adapters go into it, exports come out of it.
    """

    name: str
    depth: int
    preprocessing: Preprocessing
    network: nn.Module

    @abstractmethod
    def forward(self, images_BCHW: Tensor, blocks: tuple[int, ...]) -> tuple[Features, ...]:
        """`Features` of the given blocks (1 to depth, in the given order); blocks after the highest are not run.

        The last block is given after the network's final norm, the others as they are.
        """

    def block_modules(self) -> tuple[nn.Module, ...]:
        """The modules that are the blocks, in order: module b - 1 gives (before any final norm) what block b is.

        Each takes the state of the one before it as its first argument. Empty where a network is not built that way; then it
        cannot be cut (`backbones.cut`), checkpointed block by block, or given a learning rate a block.
        """
        return ()

    @abstractmethod
    def weights_hash(self) -> str:
        """Sha256 (hex) over the names, shapes and bytes of all weights as they are now."""

    @abstractmethod
    def spec(self) -> dict[str, str | int | bool]:
        """What rebuilds the same architecture without weights; saved in `model/model.json`."""
