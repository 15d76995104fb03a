"""What `compare retention` compares: its config, made from a user's words. Knows nothing of how it is run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from keepsight.core import Config, UserError
from keepsight.data.load import load_dataset
from keepsight.data.transforms import AugmentConfig
from keepsight.methods.penalties import NAMES
from keepsight.methods.weight_rules import TpgmConfig
from keepsight.recipes.config import FINETUNED, MethodName, TuneConfig, resolve
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.retain_settings import RetainConfig

DATA = "fashion-mnist"
METHODS: tuple[MethodName, ...] = ("finetune-full", "finetune-lora")
PLAIN = "none"
CONTROL = "unlabelled-control"
"""The same steps on images without labels: what tuning does to the suite when nothing is learnt."""

INTERPOLATED = "wise-ft"
ALPHAS = tuple(i / 10 for i in range(11))
READOUT = "8:mean"
"""Of the packaged backbone: what forgets visibly where all blocks up to it are tuned."""

PER_SET = 500
POOL = 2000


class CompareConfig(Config):
    """A comparison of ways to keep what a backbone knew, on one task.

    Attributes:
        base: All settings, as for `tune`, with the methods and seeds; its `retain` is not looked at.
        variants: Of each method what is put into `retain`, one training each: "none" first; "wise-ft:ALPHA" is made of the plain
            training's two ends and takes none; "unlabelled-control" is the same budget without labels.
        pool: At most so many images to learn from (see `data.limit.limited`).
        forgetting: The suite, and how it is measured.
    """

    base: TuneConfig
    variants: dict[MethodName, tuple[str, ...]]
    pool: int = Field(default=POOL, ge=1)
    forgetting: ForgettingConfig


def retain_of(variant: str) -> RetainConfig:
    """The setting `retain` of a variant that is trained; UserError for what is not understood."""
    return resolve("", settings={"retain": variant}).retain


def alpha_of(variant: str) -> float | None:
    """Where a variant lies between the plain training's start (0) and end (1); None for one that is trained.

    Example:
        >>> alpha_of("wise-ft:0.3"), alpha_of("procrustes:2")
        (0.3, None)
    """
    return retain_of(variant).wise_ft if variant.partition(":")[0] == INTERPOLATED else None


def retention_config(
    data: str | None = None,
    *,
    retain: str | None = None,
    methods: str | None = None,
    seeds: int = 1,
    labels: int = 256,
    test: int = 1000,
    backbone: str | None = None,
    size: int = 56,
    readout: str | None = None,
    suite: Sequence[str] = (),
    per_set: int = PER_SET,
    assignments: Sequence[str] = (),
) -> CompareConfig:
    """The config from a command's words; see the command for their meaning.

    Raises:
        UserError: What is wrong with them, as far as it can be told without reading images.
    """
    for word in assignments:
        key = word.partition("=")[0].strip()
        if key.split(".")[0] in _OWN:
            raise UserError(f"A comparison sets {key} itself: use {_OWN[key.split('.')[0]]}.")
    settings: dict[str, Any] = {
        "backbone": {"size": size, **({} if backbone is None else {"name": backbone})},
        "readout": readout or (READOUT if backbone is None else "auto"),
        "methods": _methods(methods),
        "seeds": seeds,
        "split": {"labels": labels, "test": test},
        **_budget(),
    }
    base = resolve(_data(data), settings=settings, assignments=assignments)
    given: dict[str, Any] = {"per_set": per_set} | ({"suite": tuple(suite)} if suite else {})
    variants = {method: _variants(retain, method) for method in base.methods}
    _check(base, variants)
    return CompareConfig(
        base=base, variants=variants, pool=max(POOL, labels), forgetting=ForgettingConfig.model_validate(given)
    )


_OWN = {
    "data": "the first word",
    "methods": "--methods",
    "retain": "--retain",
    "seeds": "--seeds",
    "trackers": "keepsight tune, if you want training curves",
}
"""Settings that would be overwritten, and what sets them."""


def _budget() -> dict[str, Any]:
    """The same steps for every method: 5 epochs of plain images in batches of 32. Full tuning warms up over a quarter of them.

    At a learning rate of 5e-5 full tuning forgets 1 to 2 points, too little to tell what keeps it from that; with augmentation it
    loses on the task as well, in so few steps (docs/log.md).
    """
    plain = AugmentConfig.none().model_dump()
    steps: dict[str, dict[str, Any]] = {
        method.replace("-", "_"): {"epochs": 5, "batch_size": 32, "augmentation": plain} for method in FINETUNED
    }
    steps["finetune_full"]["training"] = {"optim": {"lr": 1e-4, "warmup": 0.25}}
    return steps


def _data(data: str | None) -> str:
    if data is not None:
        return data
    try:
        load_dataset(DATA, check=False)
    except UserError as error:
        raise UserError(
            f"The comparison's own task is {DATA}, which is not installed here ({str(error).rstrip('.')}): install it, or "
            f"name other data, as in 'keepsight compare retention mnist-5k'."
        ) from error
    return DATA


def _methods(text: str | None) -> tuple[str, ...]:
    if text is None:
        return METHODS
    named = _words(text, "--methods")
    for name in named:
        if name not in FINETUNED:
            close = difflib.get_close_matches(name, FINETUNED, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FINETUNED)}."
            raise UserError(
                f"A comparison of retention is made on methods that tune a backbone, and {name!r} is none: {hint}"
            )
    return named


def _words(text: str, option: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise UserError(f"{option} is empty: give at least one value.")
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise UserError(f"{option} names {twice} twice: name each once.")
    return words


def _variants(text: str | None, method: MethodName) -> tuple[str, ...]:
    """What is compared on one method, the plain training first."""
    if text is None:
        # A soup costs three trainings: on one method that is enough of a default.
        soup = ("soup:3",) if method == "finetune-full" else ()
        words: tuple[str, ...] = (*NAMES, "ftp", "spd", *soup, INTERPOLATED, CONTROL)
    else:
        words = _words(text, "--retain")
    found: list[str] = [PLAIN]
    for word in words:
        found += [f"{INTERPOLATED}:{alpha:g}" for alpha in ALPHAS] if word == INTERPOLATED else [word]
    return tuple(dict.fromkeys(found))


def _check(base: TuneConfig, variants: Mapping[MethodName, tuple[str, ...]]) -> None:
    for variant in dict.fromkeys(v for of in variants.values() for v in of):
        if variant == CONTROL:
            continue
        retain = retain_of(variant)
        if not retain and variant != PLAIN and alpha_of(variant) is None:
            raise UserError(f"The retention {variant!r} keeps nothing: that is 'none', which is always measured.")
        if any(isinstance(rule, TpgmConfig) for rule in retain.rules) and not base.split.validation:
            raise UserError(
                "The retention tpgm learns its radii on validation images: keep some with split.validation=0.2."
            )
    for method in base.methods:
        if base.finetuning(method).training.sharding != "none":
            raise UserError("A comparison of retention runs in one process: set the method's training.sharding=none.")
