"""What a sweep over label counts compares: its config, made from a user's words. Knows nothing of how it is run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keepsight.core import Config, UserError
from keepsight.recipes.config import METHODS, TRAINABLE, MethodName, TuneConfig, resolve

DEFAULT_LABELS = (10, 40, 100, 250, 1000)
DEFAULT_SEEDS = 5


class SweepConfig(Config):
    """A sweep: every data set with every backbone at every size and every number of labels.

    Attributes:
        data: What `load_dataset` takes.
        backbones: Names.
        sizes: Input sizes, px; None is the backbone's own.
        labels: Numbers of labels, ascending.
        pool: At most so many images to learn from (see `data.limit.limited`); None takes all.
        base: All other settings, and the methods and seeds, as for `tune`; its data, its backbone's name and size and its number of
            labels are not looked at.
    """

    data: tuple[str, ...]
    backbones: tuple[str, ...]
    sizes: tuple[int | None, ...]
    labels: tuple[int, ...]
    pool: int | None
    base: TuneConfig

    def at(self, data: str, backbone: str, size: int | None, labels: int) -> TuneConfig:
        """The config of one point, the same as of a run of `tune`; settings that nobody gave stay ungiven."""
        settings = self.base.model_dump(exclude_unset=True)
        settings["data"] = data
        settings["backbone"] = {**settings.get("backbone", {}), "name": backbone, "size": size}
        settings["split"] = {**settings.get("split", {}), "labels": labels}
        return resolve("", settings=settings)

    def points(self) -> list[TuneConfig]:
        """All points: the label counts of one data set, backbone and size follow each other."""
        return [
            self.at(data, backbone, size, labels)
            for data in self.data
            for backbone in self.backbones
            for size in self.sizes
            for labels in self.labels
        ]


def family(method: str) -> str:
    """'trainable' for a method that trains a network on images, 'frozen' for one on the features of the backbone as it is."""
    return "trainable" if method in TRAINABLE else "frozen"


def chosen_methods(methods: Sequence[str] | None, frozen: bool, trainable: bool) -> tuple[MethodName, ...]:
    """The methods of a sweep: those named, or all of the families asked for; the frozen ones if nothing is said.

    Raises:
        UserError: An unknown or repeated name, or one that is not of the families asked for.

    Example:
        >>> chosen_methods(["probe"], frozen=False, trainable=False)
        ('probe',)
    """
    families = {name for name, wanted in (("frozen", frozen), ("trainable", trainable)) if wanted}
    if methods is None:
        return tuple(m for m in METHODS if family(m) in (families or {"frozen"}))
    for number, name in enumerate(methods):
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(METHODS)}."
            raise UserError(f"There is no method {name!r}: {hint}")
        if name in methods[:number]:
            raise UserError(f"The method {name!r} is given twice: name each method once.")
        if families and family(name) not in families:
            raise UserError(
                f"The method {name!r} is {family(name)}: add --{family(name)}, or leave it out of --methods."
            )
    if not methods:
        raise UserError("No method is named: give --methods such as probe,label-propagation.")
    return tuple(m for m in METHODS if m in methods)


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Positive whole numbers, ascending, from '10,40,100'.

    Raises:
        UserError: Something else, or a number twice.

    Example:
        >>> whole_numbers("100, 10", "--labels")
        (10, 100)
    """
    numbers = []
    for word in names(text, option):
        if not (word.isascii() and word.isdigit() and 0 < len(word) < 10 and int(word) > 0):
            raise UserError(
                f"{option} takes whole numbers from 1 separated by commas, such as 10,40,100: {word!r} is none."
            )
        numbers.append(int(word))
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise UserError(f"{option} has {twice} twice: give each number once.")
    return tuple(sorted(numbers))


def names(text: str, option: str) -> tuple[str, ...]:
    """Words between commas; UserError if there is none."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise UserError(f"{option} is empty: give at least one value.")
    return words


def data_names(text: str) -> tuple[str, ...]:
    """Data sets between commas; a path that is there is taken whole, commas and all."""
    try:
        if Path(text).expanduser().exists():
            return (text,)
    except (OSError, RuntimeError):
        pass  # no path: the words between the commas may be names
    found = names(text, "DATA")
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise UserError(f"The data set {twice!r} is given twice: name each once.")
    return found


def sweep_config(
    data: str,
    *,
    backbones: str | None = None,
    sizes: str | None = None,
    methods: str | None = None,
    labels: str | None = None,
    frozen: bool = False,
    trainable: bool = False,
    pool: int | None = None,
    settings: dict[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> SweepConfig:
    """The config from a command's words; see the command for their meaning.

    Raises:
        UserError: What is wrong with them, as far as it can be told without reading data.
    """
    words = names(methods, "--methods") if methods is not None else None
    given = {"seeds": DEFAULT_SEEDS, **(settings or {}), "methods": chosen_methods(words, frozen, trainable)}
    for word in assignments:
        key = word.partition("=")[0].strip()
        if key in _OWN:
            raise UserError(f"A sweep sets {key} itself: use {_OWN[key]}.")
    base = resolve("", settings=given, assignments=assignments)
    named = names(backbones, "--backbone") if backbones is not None else (base.backbone.name,)
    if len(set(named)) < len(named):
        raise UserError("--backbone names one backbone twice: name each once.")
    if pool is not None and pool < 1:
        raise UserError(f"--pool must be at least 1, not {pool}.")
    counts = whole_numbers(labels, "--labels") if labels is not None else DEFAULT_LABELS
    if pool is not None and counts[-1] > pool:
        raise UserError(
            f"--labels {counts[-1]} is more than the pool of {pool} images: give fewer labels or a larger --pool."
        )
    return SweepConfig(
        data=data_names(data),
        backbones=named,
        sizes=whole_numbers(sizes, "--size") if sizes is not None else (base.backbone.size,),
        labels=counts,
        pool=pool,
        base=base,
    )


_OWN = {
    "data": "the first word",
    "methods": "--methods, --frozen or --trainable",
    "backbone.name": "--backbone",
    "split.labels": "--labels",
}
"""Settings that would be overwritten, and what sets them."""
