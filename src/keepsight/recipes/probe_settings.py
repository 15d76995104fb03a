"""The config of `keepsight probe`, and the one that a command's words make. Knows no probe's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, JsonValue, field_validator

from keepsight.backbones.config import TimmArgs
from keepsight.core import Config
from keepsight.recipes.forgetting_settings import BUNDLED
from keepsight.recipes.probe_names import ProbeName, in_order, parse_probes
from keepsight.recipes.words import merged, nested, validated

NONE, RANDOM = "none", "random"
"""What `against` may be beside a name or folder: nothing, or the same network with random weights."""

Settings = dict[str, JsonValue]
"""Of one probe; its own config checks them, when the probe is made."""


class LoadingConfig(Config):
    """What a name alone does not say of a backbone; see `BackboneConfig`."""

    weights: str = "pretrained"
    architecture: str | None = None
    allow_partial: bool = False
    timm_args: TimmArgs = Field(default_factory=dict)


class ProbingConfig(Config):
    """Which probes are asked of which backbones.

    Attributes:
        model: A backbone as for `load_backbone`; the folder of a run of tune or of one of its models, or of a run of ViSFT.
        against: What it is compared with, named alike; "none"; or "random", the same network with random weights. None compares a
            tuned model with the untouched backbone that it came from, and a backbone with nothing.
        probes: Some of `PROBES`; None takes all whose data and packages are there, and says which are not.
        loading: Of `model`, where it is a backbone's name.
        against_loading: Of `against`, where it is one.
        leave_out: Leave out also a probe that was named, where it cannot be asked, and say why.
        seed: Of all probes, where their own settings name no other.
        shuffled: Learn from shuffled targets, as a control: every score should be at chance.
        suite: Data sets of the probes that classify; as in `ForgettingConfig`, without those that a model was tuned on.
        pool: Images of each of these, at most, of which the probes draw theirs.
        examples: Test items of a probe that the page shows, at most.
        ocr, goi, zero_shot, few_shot, retrieval, vqa, knn, linear, attention: Settings of the probes' own.
    """

    model: str
    against: str | None = None
    probes: tuple[ProbeName, ...] | None = None
    leave_out: bool = False
    loading: LoadingConfig = LoadingConfig()
    against_loading: LoadingConfig = LoadingConfig()
    seed: int = Field(default=0, ge=0)
    shuffled: bool = False
    suite: tuple[str, ...] = Field(default=(BUNDLED,), min_length=1)
    pool: int = Field(default=5000, ge=20)
    examples: int = Field(default=8, ge=0)
    ocr: Settings = Field(default_factory=dict)
    goi: Settings = Field(default_factory=dict)
    zero_shot: Settings = Field(default_factory=dict)
    few_shot: Settings = Field(default_factory=dict)
    retrieval: Settings = Field(default_factory=dict)
    vqa: Settings = Field(default_factory=dict)
    knn: Settings = Field(default_factory=dict)
    linear: Settings = Field(default_factory=dict)
    attention: Settings = Field(default_factory=dict)

    @field_validator("probes")
    @classmethod
    def _probes(cls, probes: tuple[ProbeName, ...] | None) -> tuple[ProbeName, ...] | None:
        if probes is not None and not probes:
            raise ValueError("name at least one probe")
        return None if probes is None else in_order(probes)

    def settings(self, name: ProbeName) -> Settings:
        """What was set for one probe."""
        found: Settings = getattr(self, name.replace("-", "_"))
        return found


def probing_config(
    model: str,
    *,
    against: str | None = None,
    probes: str | None = None,
    seed: int | None = None,
    shuffled: bool = False,
    assignments: Sequence[str] = (),
) -> ProbingConfig:
    """One complete config; see the command for the words.

    Raises:
        UserError: What is wrong with them, as far as it can be told without reading images.

    Example:
        >>> probing_config("vit_s14_imgfocus", probes="vqa,ocr", assignments=["ocr.size=168"]).probes
        ('ocr', 'vqa')
    """
    given: dict[str, Any] = {"against": against, "seed": seed, "shuffled": shuffled or None}
    if probes is not None:
        given["probes"] = parse_probes(probes)
    found = merged(ProbingConfig(model=model).model_dump(), {k: v for k, v in given.items() if v is not None})
    for assignment in assignments:
        found = merged(found, nested(assignment))
    return validated(ProbingConfig, found)
