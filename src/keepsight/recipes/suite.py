"""The reference suite: data sets that a model was not tuned on, a few images of each. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keepsight.core import UNLABELLED, Dataset, UserError
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig
from keepsight.data.splits import Indices, allocate, pick
from keepsight.data.subset import subset
from keepsight.recipes.forgetting_settings import BUNDLED, ForgettingConfig
from keepsight.recipes.origin import DIGITS

BUNDLED_SETS = ("mnist-5k", "digits", "fashion-mnist", "stamps")


@dataclass(frozen=True, slots=True)
class Suite:
    """Data sets, each of labelled images alone and every class with enough of them; and why others are not in it."""

    sets: tuple[Dataset, ...]
    notes: tuple[str, ...]


def load_suite(config: ForgettingConfig, trained_on: Sequence[str], options: DataConfig | None = None) -> Suite:
    """The sets that `config.suite` names, without those that share an image with what was trained on.

    Args:
        config: Which, and how many images of each.
        trained_on: What is known of the images that were trained on (`origin.sketch`).
        options: How pixels are read.

    Raises:
        UserError: A set that was named (and is not a bundled one that is not installed) cannot be read or measured on.
    """
    seen, sets, notes = frozenset(trained_on), dict[str, Dataset](), list[str]()
    for name, bundled in _names(config.suite):
        try:
            whole = load_dataset(name, None if bundled else options, check=False)
        except UserError as error:
            if not bundled:
                raise
            notes.append(f"{name} is left out: {error}")
            continue
        shared = _shared(whole, seen)
        if shared:
            notes.append(
                f"{name} is left out: at least {shared} of its {len(whole.images):,} images are in the data of the training."
            )
            continue
        sample, note = _sampled(whole, config)
        title = _free(sample.name, sets)
        sets[title] = Dataset(title, sample.images, sample.labels, sample.classes, sample.parts)
        if note:
            notes.append(note)
    return Suite(tuple(sets.values()), tuple(notes))


def check_suite(config: ForgettingConfig, options: DataConfig | None = None) -> None:
    """Read the sets that were named, before anything else is done.

    Raises:
        UserError: What `load_suite` refuses.
    """
    named = tuple(name for name in config.suite if name != BUNDLED)
    if config.measure and named:
        load_suite(config.model_copy(update={"suite": named}), (), options)


def _names(suite: Sequence[str]) -> list[tuple[str, bool]]:
    """Every set once, and whether it may be missing."""
    found: dict[str, bool] = {}
    for name in suite:
        for each in BUNDLED_SETS if name == BUNDLED else (name,):
            found[each] = name == BUNDLED and found.get(each, True)
    return list(found.items())


def _free(name: str, taken: dict[str, Dataset]) -> str:
    title, number = name, 2
    while title in taken:
        title, number = f"{name}-{number}", number + 1
    return title


def _shared(dataset: Dataset, seen: frozenset[str]) -> int:
    """Images of the whole set, not only of those drawn from it, that were trained on."""
    if not seen:
        return 0
    return sum(dataset.images.content_hash(i).hex()[:DIGITS] in seen for i in range(len(dataset.images)))


def _sampled(dataset: Dataset, config: ForgettingConfig) -> tuple[Dataset, str]:
    """At most `per_set` labelled images of classes that have `folds` of them, and a sentence about classes that have not."""
    if dataset.targets is not None:
        raise UserError(
            f"The data set {dataset.name} is multi-label: forgetting is measured on data with one class an image."
        )
    folds = config.rule.folds * (1 if config.part == "all" else 2)  # so that each half has enough
    counts = np.bincount(dataset.labels[dataset.labels != UNLABELLED], minlength=len(dataset.classes))
    kept = np.flatnonzero(counts >= folds)
    if len(kept) < 2:
        raise UserError(
            f"The data set {dataset.name} has {len(kept)} classes with at least {folds} labelled images: to measure "
            f"forgetting, two are needed."
        )
    if config.per_set < folds * len(kept):
        raise UserError(
            f"The data set {dataset.name} has {len(kept)} classes, and per_set={config.per_set} images are fewer than {folds} of "
            f"each: raise it to {folds * len(kept)} or more."
        )
    number = {int(old): new for new, old in enumerate(kept)}
    pool: Indices = np.flatnonzero(np.isin(dataset.labels, kept))
    labels_N = np.array([number[int(k)] for k in dataset.labels[pool]], dtype=np.int64)
    have = np.bincount(labels_N)
    taken = allocate(have, min(config.per_set, len(pool)), np.full_like(have, folds), have)
    chosen = pick(labels_N, taken, np.random.default_rng((config.seed, 5)))
    if config.part != "all":
        by_class = chosen[np.argsort(labels_N[chosen], kind="stable")]
        chosen = np.sort(by_class[(0 if config.part == "choice" else 1) :: 2])
    few = subset(dataset, pool[chosen])
    classes = tuple(dataset.classes[k] for k in kept)
    small = [dataset.classes[k] for k in np.flatnonzero((counts > 0) & (counts < folds))]
    note = (
        f"{dataset.name} is measured without its classes of fewer than {folds} images: {', '.join(small)}."
        if small
        else ""
    )
    return Dataset(dataset.name, few.images, labels_N[chosen], classes, few.parts), note
