"""Which token a semi-supervised method works on: settings that such methods share."""

from __future__ import annotations

from pydantic import Field

from keepsight.core import Config
from keepsight.data.transforms import AugmentConfig


class TokenConfig(Config):
    """The token of an image (see `heads.token.make_token`).

    Attributes:
        views: Augmented views of every image, cached. With views the axes are those in which the views of one image differ
            little; 0 takes principal axes.
        augmentation: Of the views.
        reduced: Principal axes that are kept; fewer where there are fewer images.
        ridge: How much of the mean variance within images is added before it is divided out.
    """

    views: int = Field(default=6, ge=0)
    augmentation: AugmentConfig = AugmentConfig()
    reduced: int = Field(default=384, ge=1)
    ridge: float = Field(default=0.03, gt=0)
