"""Fewer images of a large data set, drawn once by the split seed. Knows nothing of what they are used for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keepsight.core import UNLABELLED, Dataset
from keepsight.core.progress import log
from keepsight.data.multilabel import draw_rows
from keepsight.data.splits import Indices, SplitConfig, allocate, make_splits, pick
from keepsight.data.subset import subset


def limited(dataset: Dataset, config: SplitConfig, pool: int | None) -> Dataset:
    """The data set with at most `pool` images to learn from, and of its own test part no more than a number `config.test`.

    Images are drawn class by class in proportion (those without a label count as a class), at least one of each, as
    `config.seed` says. The test part stays apart from the pool, and is the one that the whole data set would have had; it is marked
    so that `make_splits` finds it again. An own validation part is left as it is. Where nothing is left out, the data set
    comes back as it is.

    Raises:
        UserError: What `make_splits` refuses.

    Example:
        >>> from keepsight.data.arrays import ArrayImages
        >>> images = ArrayImages(np.arange(60, dtype=np.uint8).repeat(4).reshape(60, 2, 2))
        >>> whole = Dataset("all", images, np.arange(60) % 3, ("a", "b", "c"), ("",) * 60)
        >>> few = limited(whole, SplitConfig(test=12), pool=9)
        >>> len(few.images), few.parts.count("test")
        (21, 12)
    """
    own_test = "test" in dataset.parts
    many = own_test and isinstance(config.test, int) and 0 < config.test < dataset.parts.count("test")
    if pool is None and not many:
        return dataset
    splits = make_splits(
        dataset, config.model_copy(update={"labels": None, "test": None if own_test else config.test}), (0,)
    )
    test = _drawn(dataset, splits.test, int(config.test or 0), (config.seed, 3)) if many else splits.test
    parts = np.array(dataset.parts, dtype=object)
    validation = np.flatnonzero(parts == "val")
    images = np.setdiff1d(np.arange(len(parts)), np.concatenate([splits.test, validation]))
    if pool is not None and pool < len(images):
        images = _drawn(dataset, images, pool, (config.seed, 4))
    elif pool is not None and pool > len(images):
        log.warning(
            "%s has %d images to learn from, fewer than the pool of %d: all are used.", dataset.name, len(images), pool
        )
    kept = np.sort(np.concatenate([images, validation, test]))
    parts[test] = "test"
    return subset(replace(dataset, parts=tuple(parts.tolist())), kept)


def _drawn(dataset: Dataset, among: Indices, number: int, seed: tuple[int, int]) -> Indices:
    """Ascending: `number` of these images, the classes in proportion; each has one at least, where there are enough."""
    rng = np.random.default_rng(seed)
    if dataset.targets is not None:
        labelled = among[dataset.labels[among] != UNLABELLED]
        few = round(number * len(labelled) / len(among))
        chosen = labelled[draw_rows(dataset.targets[labelled], few, rng)]
        others = rng.permutation(np.setdiff1d(among, labelled))[: number - few]
        return np.sort(np.concatenate([chosen, others]))
    classes, class_N, counts = np.unique(dataset.labels[among], return_inverse=True, return_counts=True)
    least = np.ones_like(counts) if number >= len(classes) else np.zeros_like(counts)
    return among[pick(class_N, allocate(counts, number, least, counts), rng)]
