"""Settings of the measurement of forgetting."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from keepsight.core import Config, Pool, Readout
from keepsight.evaluate.forgetting import ProbeRule

BUNDLED = "bundled"
"""The name in a suite that stands for all sets that come with keepsight or a package of the system."""


class ForgettingConfig(Config):
    """What is measured of forgetting, and on what.

    Attributes:
        measure: Whether `tune` measures it at its end, for each method that changed the backbone's weights.
        suite: Data sets: names, folders or files as `tune` takes them; 'bundled' stands for MNIST-5k, scikit-learn's digits, and
            Fashion-MNIST and Tux Paint's stamps where they are installed.
        per_set: Images of each set, at most; drawn with the classes in proportion.
        readout: As text; None for the model's own.
        block_pool: How each block is pooled for its CKA.
        rule: How k-NN and the linear probe are fitted.
        part: "all" images that were drawn, or one half of them, class by class: "choice" and "report" share no image.
        limit: Points of mean probe accuracy that a tuned backbone may lose (see `recipes.within`); null for no limit. Where
            there is one, it is kept on the half "choice", and the measurement at the end of `tune` takes the other.
        seed: Of the drawn images, the folds, the shuffled control and the bootstrap.
        template: What a class name is put into for zero-shot classification; {} is the name.
        sharpness: Whether the sharpness of the loss on the model's own labelled images is measured, too, in 2 x `pairs` + 1 passes
            over at most `sharpness_images` of them.
        rho: Relative size of the perturbations (see `evaluate.sharpness`).
        pairs: Perturbations, each with both signs.
        sharpness_images: Labelled images, at most.
        attention: Images in which the page shows where both networks look.
    """

    measure: bool = True
    suite: tuple[str, ...] = Field(default=(BUNDLED,), min_length=1)
    per_set: int = Field(default=1000, ge=20)
    readout: str | None = None
    block_pool: Pool = "mean"
    rule: ProbeRule = ProbeRule()
    part: Literal["all", "choice", "report"] = "all"
    limit: float | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    template: str = "a photo of a {}."
    sharpness: bool = False
    rho: float = Field(default=0.01, gt=0)
    pairs: int = Field(default=5, ge=1)
    sharpness_images: int = Field(default=256, ge=1)
    attention: int = Field(default=4, ge=0)

    @field_validator("readout")
    @classmethod
    def _readout(cls, text: str | None) -> str | None:
        return None if text is None else str(Readout.parse(text))

    @field_validator("template")
    @classmethod
    def _template(cls, text: str) -> str:
        if text.count("{}") != 1:
            raise ValueError("write {} once, where the class name goes")
        return text
