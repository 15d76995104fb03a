"""Settings of FixMatch, frozen and with LoRA, and of the search for its temperature and threshold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from keepsight.core import Config
from keepsight.methods.fixmatch import FixMatchConfig
from keepsight.recipes.semi_settings import SemiSettings, TunedSemiSettings
from keepsight.train import OptimConfig, TrainConfig

Temperature = Annotated[float, Field(gt=0)]
Threshold = Annotated[float, Field(ge=0, le=1)]


class FixMatchSearch(Config):
    """How temperature and threshold are chosen on the labelled images, always on cached tokens.

    Attributes:
        candidates: (temperature, threshold) of each candidate; with one alone it is taken. Where a class has a single label, the
            objective's own are.
        folds: Folds of hidden labels.
        steps: Optimizer steps of each short training.
        images: Unlabelled images that it looks at, at most.
        batch_size: Labelled images a step.
        unlabelled_batch_size: Unlabelled images a step.
    """

    candidates: Annotated[tuple[tuple[Temperature, Threshold], ...], Field(min_length=1)] = (
        (0.5, 0.9),
        (0.3, 0.8),
        (1.0, 0.95),
    )
    folds: int = Field(default=2, ge=2)
    steps: int = Field(default=80, ge=1)
    images: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=32, ge=1)
    unlabelled_batch_size: int = Field(default=64, ge=1)


class FixMatchSettings(SemiSettings):
    """FixMatch on cached features.

    Attributes:
        objective: Head and losses.
        search: For temperature and threshold.
    """

    objective: FixMatchConfig = FixMatchConfig()
    search: FixMatchSearch = FixMatchSearch()


class TunedFixMatchSettings(TunedSemiSettings):
    """FixMatch through a backbone of which some weights are trained.

    Attributes:
        objective: Head and losses.
        search: For temperature and threshold.
    """

    objective: FixMatchConfig = FixMatchConfig()
    search: FixMatchSearch = FixMatchSearch()


def fixmatch_lora() -> TunedFixMatchSettings:
    """FixMatch with LoRA in the backbone."""
    return TunedFixMatchSettings(
        batch_size=16,
        unlabelled_batch_size=32,
        epochs=2,
        least_steps=200,
        training=TrainConfig(optim=OptimConfig(lr=1e-3), ema=0.99),
    )
