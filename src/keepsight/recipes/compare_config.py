"""What `compare` compares: candidates from a user's words, their budget and limit. Knows nothing of how they are run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from keepsight.core import Config, UserError
from keepsight.methods.weight_rules import TpgmConfig
from keepsight.recipes.config import FINETUNED, METHODS, TRAINABLE, MethodName, TuneConfig, resolve
from keepsight.recipes.retain_settings import RetainConfig
from keepsight.recipes.retention_config import ALPHAS, INTERPOLATED, PLAIN, retain_of
from keepsight.recipes.words import merged, nested

SHORT_NAMES: dict[str, MethodName] = {name.removeprefix("finetune-"): name for name in FINETUNED}
"""'lora' for 'finetune-lora'."""

ADDS_PARTS: tuple[MethodName, ...] = ("finetune-vpt", "finetune-adaptformer")
"""What they add to a network has no start that it could be mixed with."""

DEMO_METHODS = "knn,probe,label-propagation,lora,full"
DEMO_RETAIN = "none,wise-ft"
DEMO_SEEDS = 3
DEMO_BUDGET = "7m"
DEMO_PER_SET = 300
"""Of `compare demo`: a slow machine leaves out the dearest candidates and comes to an end all the same."""


class Candidate(Config):
    """One way to make a model: a method, and for one that tunes the backbone what holds it back.

    Attributes:
        method: As for `tune`.
        retain: As for `tune`; None for plain training and for frozen backbones.
    """

    method: MethodName
    retain: str | None = None

    @property
    def name(self) -> str:
        """'finetune-full+procrustes', or the method's own."""
        return self.method if self.retain is None else f"{self.method}+{self.retain}"

    @property
    def tuned(self) -> bool:
        """Whether a network is trained on images."""
        return self.method in TRAINABLE

    @property
    def alphas(self) -> tuple[float, ...]:
        """Where it may lie between the two ends of the plain training, which it is made of; none for what is trained itself."""
        if self.retain is None or self.retain.partition(":")[0] != INTERPOLATED:
            return ()
        if self.method not in FINETUNED or self.method in ADDS_PARTS:
            return ()
        return ALPHAS if self.retain == INTERPOLATED else (self.setting.wise_ft,)

    @property
    def training(self) -> Candidate:
        """The candidate that is trained for this one: itself, or the plain training."""
        return Candidate(method=self.method) if self.alphas else self

    @property
    def setting(self) -> RetainConfig:
        """The setting `retain`."""
        return RetainConfig.model_validate(self.retain or PLAIN)


class LadderConfig(Config):
    """A comparison.

    Attributes:
        base: All settings, as for `tune`; its `methods` are those of the candidates, its `retain` is not looked at.
        candidates: From cheap to dear.
        budget: Seconds that it may take; None for no limit.
        limit: Points of mean probe accuracy on other data that a recommended candidate may lose; None for no limit.
        notes: What was asked for and is no candidate, and why.
    """

    base: TuneConfig
    candidates: tuple[Candidate, ...]
    budget: float | None = None
    limit: float | None = None
    notes: tuple[str, ...] = ()


_OWN = {
    "data": "the first word",
    "methods": "--methods",
    "retain": "--retain",
    "seeds": "--seeds",
    "forgetting.limit": "--max-forgetting",
    "forgetting.suite": "--suite",
    "forgetting.part": "--max-forgetting",
}
"""Settings that have an option, or would be overwritten."""


def ladder_config(
    data: str,
    *,
    methods: str | None = None,
    retain: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    limit: float | None = None,
    suite: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> LadderConfig:
    """The config from a command's words; see the command for their meaning.

    Raises:
        UserError: What is wrong with them, as far as it can be told without reading images.

    Example:
        >>> found = ladder_config("leaves", methods="full,probe", retain="none,procrustes", budget="1h30m")
        >>> [candidate.name for candidate in found.candidates], found.budget
        (['probe', 'finetune-full', 'finetune-full+procrustes'], 5400.0)
    """
    for word in assignments:
        for key in _keys(nested(word)):
            if key in _OWN:
                raise UserError(f"A comparison sets {key} itself: use {_OWN[key]}.")
    if data == "demo":
        methods, retain, budget = methods or DEMO_METHODS, retain or DEMO_RETAIN, budget or DEMO_BUDGET
        seeds = seeds or DEMO_SEEDS
        settings = merged({"forgetting": {"per_set": DEMO_PER_SET}}, settings or {})
    given = dict(settings or {})
    if methods is not None:
        given["methods"] = list(_methods(methods))
    if seeds is not None:
        given["seeds"] = seeds
    if suite:
        given = merged(given, {"forgetting": {"suite": list(suite)}})
    base = resolve(data, settings=given, assignments=assignments)
    base.check_watched(limit)
    candidates, notes = _candidates(base, retain)
    for method in base.methods:
        if method in FINETUNED and base.finetuning(method).training.sharding != "none":
            raise UserError("A comparison runs in one process: set the method's training.sharding=none.")
    return LadderConfig(
        base=base,
        candidates=candidates,
        budget=None if budget is None else seconds_of(budget),
        limit=limit,
        notes=notes,
    )


_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


def seconds_of(text: str) -> float:
    """Seconds of '30m', '90s', '2h', '1h30m'.

    Raises:
        UserError: It is none of these, or nothing.

    Example:
        >>> seconds_of("90s"), seconds_of("0.5h")
        (90.0, 1800.0)
    """
    found = _TIME.fullmatch(text.strip().lower().replace(" ", ""))
    parts = [float(part or 0) for part in found.groups()] if found else []
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if seconds <= 0:
        raise UserError(f"--budget takes a time with its unit, such as 30m, 90s or 2h: {text!r} is none.")
    return seconds


def _keys(settings: dict[str, Any], before: str = "") -> list[str]:
    """'forgetting' and 'forgetting.limit' of {"forgetting": {"limit": 1}}."""
    found = []
    for key, value in settings.items():
        found.append(f"{before}{key}")
        if isinstance(value, dict):
            found += _keys(value, f"{before}{key}.")
    return found


def _methods(text: str) -> tuple[MethodName, ...]:
    found = []
    for word in words_of(text, "--methods"):
        name = SHORT_NAMES.get(word, word)
        known = next((method for method in METHODS if method == name), None)
        if known is None:
            close = difflib.get_close_matches(word, [*SHORT_NAMES, *METHODS], n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}."
            raise UserError(f"There is no method {word!r}: {hint}")
        if known in found:
            raise UserError(f"--methods names {known} twice: name each once.")
        found.append(known)
    return tuple(found)


def words_of(text: str, option: str) -> tuple[str, ...]:
    """The words of a comma-separated option, each once; UserError for none or the same twice."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise UserError(f"{option} is empty: give at least one value.")
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise UserError(f"{option} names {twice} twice: name each once.")
    return words


def _candidates(base: TuneConfig, text: str | None) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """All candidates from cheap to dear, and why others are none."""
    entries = (PLAIN,) if text is None else words_of(text, "--retain")
    for entry in entries:
        _check_entry(entry, base)
    tunes = [method for method in base.methods if method in TRAINABLE and method != "cnn"]
    held = [entry for entry in entries if entry != PLAIN]
    if held and not tunes:
        raise UserError(
            f"--retain asks for {held[0]}, and none of the methods {', '.join(base.methods)} tunes the backbone: add one, such as "
            f"--methods {base.methods[0]},lora."
        )
    made: list[Candidate] = []
    notes: list[str] = []
    for method in base.methods:
        if method not in tunes:
            made.append(Candidate(method=method))
            continue
        for entry in entries:
            candidate = Candidate(method=method, retain=None if entry == PLAIN else entry)
            if reason := _refusal(candidate):
                notes.append(f"{candidate.name} is left out: {reason}")
            else:
                made.append(candidate)
    if not made:
        raise UserError(notes[0].replace(" is left out: ", " cannot be compared: "))
    return tuple(made), tuple(notes)


def _check_entry(entry: str, base: TuneConfig) -> None:
    retain = retain_of(entry)
    if not retain and entry != PLAIN and entry.partition(":")[0] != INTERPOLATED:
        raise UserError(f"The retention {entry!r} keeps nothing: write none for plain tuning.")
    if any(isinstance(rule, TpgmConfig) for rule in retain.rules) and not base.split.validation:
        raise UserError(
            "The retention tpgm learns its radii on validation images: keep some with split.validation=0.2."
        )


def _refusal(candidate: Candidate) -> str:
    """Why this method cannot be held back so; empty where it can."""
    if candidate.retain == INTERPOLATED and not candidate.alphas:
        return (
            "the curve of wise-ft is made of a network's weights before and after, and this method trains parts that have no "
            "before: name one point of it, such as wise-ft:0.5."
        )
    if candidate.setting.soup > 1 and candidate.method not in FINETUNED:
        return "a soup averages fine-tunings (finetune-...)."
    return ""
