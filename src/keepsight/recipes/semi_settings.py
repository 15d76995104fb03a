"""What training on labelled and unlabelled images takes, whatever the method: the settings that such methods share."""

from __future__ import annotations

import math

from pydantic import Field

from keepsight.core import Config
from keepsight.data.transforms import AugmentConfig
from keepsight.methods.encoder import AdapterConfig
from keepsight.methods.tokens import TokenConfig
from keepsight.train import OptimConfig, TrainConfig


class SemiSettings(Config):
    """How a method is trained on labelled and unlabelled images.

    Attributes:
        token: What the method sees of an image.
        batch_size: Labelled images a step.
        unlabelled_batch_size: Images a step that are used without their label; labelled ones are among them.
        epochs: Passes over all images.
        least_steps: Steps that are taken even where `epochs` would be fewer.
        training: The loop's config.
    """

    token: TokenConfig = TokenConfig()
    batch_size: int = Field(default=64, ge=1)
    unlabelled_batch_size: int = Field(default=192, ge=1)
    epochs: int = Field(default=15, ge=1)
    least_steps: int = Field(default=300, ge=1)
    training: TrainConfig = TrainConfig(optim=OptimConfig(lr=1e-3), ema=0.99)

    def steps(self, images: int) -> int:
        """Optimizer steps for this many images."""
        return max(self.least_steps, self.epochs * math.ceil(images / self.unlabelled_batch_size))


class TunedSemiSettings(SemiSettings):
    """The same through a backbone of which some weights are trained.

    Attributes:
        adapter: Which of the backbone's weights are trained.
        augmentation: Of the labelled images; the unlabelled ones are seen plain,
        strong: and in this augmentation.
    """

    adapter: AdapterConfig = AdapterConfig()
    augmentation: AugmentConfig = AugmentConfig()
    strong: AugmentConfig = AugmentConfig(scale_min=0.6, rotate=20.0, translate=0.15, zoom=0.15, jitter=0.4)
