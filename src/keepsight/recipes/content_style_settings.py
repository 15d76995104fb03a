"""Settings of content-style and its variants, each one a function that returns the complete settings."""

from __future__ import annotations

from keepsight.methods.content_style import ContentStyleConfig
from keepsight.methods.encoder import AdapterConfig
from keepsight.methods.guide import GuideConfig
from keepsight.methods.tokens import TokenConfig
from keepsight.recipes.semi_settings import SemiSettings, TunedSemiSettings
from keepsight.train import OptimConfig, TrainConfig


class ContentStyleSettings(SemiSettings):
    """Content-style on cached features.

    Attributes:
        objective: Networks and losses.
        guide: Label propagation and probe, whose pooled posteriors are targets.
    """

    objective: ContentStyleConfig = ContentStyleConfig()
    guide: GuideConfig = GuideConfig()


class TunedContentStyleSettings(TunedSemiSettings):
    """Content-style through a backbone of which some weights are trained.

    Attributes:
        objective: Networks and losses.
        guide: Label propagation and probe on the features of the backbone as it was, whose pooled posteriors are targets.
        frozen_training: Of the rounds before the last, on cached features.
    """

    objective: ContentStyleConfig = ContentStyleConfig()
    guide: GuideConfig = GuideConfig()
    frozen_training: TrainConfig = TrainConfig(optim=OptimConfig(lr=1e-3, betas=(0.5, 0.99)), ema=0.99)


def _training(lr: float = 1e-3) -> TrainConfig:
    return TrainConfig(optim=OptimConfig(lr=lr, betas=(0.5, 0.99)), ema=0.99)


def content_style() -> ContentStyleSettings:
    """Everything that helps: view-whitened token, propagated targets in two rounds, neighbours' vote, style and reconstruction."""
    return ContentStyleSettings(epochs=10, least_steps=200, training=_training())


def content_only() -> ContentStyleSettings:
    """`content_style` without style and reconstruction: what the decomposition is measured against."""
    whole = content_style()
    objective = whole.objective.model_copy(update={"style": 0, "style_prior": 0.0, "reconstruction": 0.0})
    return whole.model_copy(update={"objective": objective})


def content_style_paper() -> ContentStyleSettings:
    """The paper's terms alone: critics of content and style, reconstruction, cross-entropy; no graph and no views."""
    objective = ContentStyleConfig(content_prior=1.0, style_prior=0.1, reconstruction=1.0, propagated=0.0)
    return ContentStyleSettings(
        token=TokenConfig(views=0, reduced=128),
        objective=objective,
        epochs=40,
        least_steps=1000,
        training=_training(),
    )


def content_style_lora() -> TunedContentStyleSettings:
    """`content_style` with LoRA in the backbone."""
    return TunedContentStyleSettings(
        batch_size=16,
        unlabelled_batch_size=32,
        epochs=2,
        least_steps=200,
        training=_training(),
    )


def content_style_full() -> TunedContentStyleSettings:
    """`content_style` with all of the backbone's weights trained, at a lower learning rate than the head's."""
    return content_style_lora().model_copy(update={"adapter": AdapterConfig(lr_scale=0.03)})
