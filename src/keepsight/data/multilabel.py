"""Images with several classes each: a data set of them, and subsets and folds with every class's share. Knows no format and no
metric.

Splits follow iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD
2011): the class with the fewest images left is dealt out first, each image to the part that lacks most of the class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keepsight.core import UNLABELLED, Dataset, ImageList, UserError
from keepsight.core.images import Part

Indices = NDArray[np.int64]
Targets = NDArray[np.int8] | NDArray[np.int64]


def multilabel_dataset(
    name: str, images: ImageList, targets_NK: Targets, classes: tuple[str, ...], parts: Sequence[Part]
) -> Dataset:
    """A multi-label data set from targets alone: a row of -1 is an image without labels.

    Example:
        >>> from keepsight.data.arrays import ArrayImages
        >>> images = ArrayImages(np.zeros((2, 4, 4), np.uint8))
        >>> targets = np.array([[1, 1], [-1, -1]], np.int8)
        >>> multilabel_dataset("two", images, targets, ("a", "b"), ("", "")).labels
        array([ 0, -1])
    """
    labels_N = np.where((targets_NK == UNLABELLED).all(axis=1), UNLABELLED, 0).astype(np.int64)
    return Dataset(name, images, labels_N, classes, tuple(parts), np.asarray(targets_NK, dtype=np.int8))


def require_single_label(dataset: Dataset, what: str) -> None:
    """Raises UserError for a multi-label data set: `what` cannot do it."""
    if dataset.targets is not None:
        raise UserError(
            f"{dataset.name} is multi-label data, an image may have several classes, and {what} needs one class an image: use "
            f"keepsight tune with the methods knn, probe and finetune-..."
        )


def class_text(dataset: Dataset, index: int) -> str | None:
    """The class or, in multi-label data, the classes of an image as one text; None without labels."""
    if dataset.labels[index] == UNLABELLED:
        return None
    if dataset.targets is None:
        return dataset.classes[int(dataset.labels[index])]
    return joined_classes([dataset.classes[k] for k in np.flatnonzero(dataset.targets[index])])


def joined_classes(names: Sequence[str]) -> str:
    """Several classes as one text.

    Example:
        >>> joined_classes(["ulcer", "polyp"]), joined_classes([])
        ('ulcer|polyp', '(none)')
    """
    return "|".join(names) or "(none)"


def deal(
    targets_NK: Targets, sizes: Sequence[int], rng: np.random.Generator, given_N: Indices | None = None
) -> Indices:
    """The part [N], 0 to J - 1, of each image: parts have exactly the given sizes and, as far as that goes, their share of
    every class.

    Args:
        targets_NK: 1 for the classes an image has.
        sizes: J numbers that sum to N.
        rng: Decides between equals.
        given_N: Parts that are decided already, -1 where not.
    """
    n = len(targets_NK)
    if sum(sizes) != n:
        raise ValueError(f"parts of {list(sizes)} images are not {n} images")
    part_N = np.full(n, -1, dtype=np.int64) if given_N is None else given_N.copy()
    has_NK = targets_NK == 1
    size_J = np.asarray(sizes, dtype=np.float64)
    wanted_JK = np.outer(size_J / max(n, 1), has_NK.sum(axis=0))
    for part in range(len(sizes)):
        size_J[part] -= (part_N == part).sum()
        wanted_JK[part] -= has_NK[part_N == part].sum(axis=0)
    order = rng.permutation(n)
    left_K = has_NK[part_N < 0].sum(axis=0)
    while left_K.any():
        rarest = int(np.argmin(np.where(left_K > 0, left_K, n + 1)))
        for i in order[(part_N[order] < 0) & has_NK[order, rarest]]:
            _place(int(i), wanted_JK[:, rarest], part_N, size_J, wanted_JK, has_NK, rng)
        left_K = has_NK[part_N < 0].sum(axis=0)
    for i in order[part_N[order] < 0]:
        _place(int(i), size_J, part_N, size_J, wanted_JK, has_NK, rng)
    return part_N


def _place(
    i: int,
    need_J: NDArray[np.float64],
    part_N: Indices,
    size_J: NDArray[np.float64],
    wanted_JK: NDArray[np.float64],
    has_NK: NDArray[np.bool_],
    rng: np.random.Generator,
) -> None:
    """Give image i to the part with the greatest need among those with room; the emptier one, then a random one of equals."""
    keys = np.stack([rng.random(len(size_J)), size_J, np.round(need_J, 9), (size_J > 0).astype(np.float64)])
    part = int(np.lexsort(keys)[-1])
    part_N[i] = part
    size_J[part] -= 1
    wanted_JK[part, has_NK[i]] -= 1


def cover(targets_NK: Targets, among: Indices, rng: np.random.Generator) -> Indices:
    """A few of the rows `among` that together have every class that occurs among them, found greedily from the rarest class.

    Example:
        >>> targets = np.array([[1, 0], [1, 1], [1, 0]], np.int8)
        >>> cover(targets, np.arange(3), np.random.default_rng(0))
        array([1])
    """
    has_NK = targets_NK[among] == 1
    missing_K = has_NK.any(axis=0)
    count_K, chosen = has_NK.sum(axis=0), []
    while missing_K.any():
        rarest = int(np.argmin(np.where(missing_K, count_K, len(among) + 1)))
        row = int(rng.choice(np.flatnonzero(has_NK[:, rarest])))
        chosen.append(row)
        missing_K &= ~has_NK[row]
    return among[np.sort(np.array(chosen, dtype=np.int64))]


def draw_rows(targets_NK: Targets, number: int, rng: np.random.Generator, *, leave: bool = False) -> Indices:
    """Ascending: `number` of the N rows with every class's share, and at least one of each class where they suffice.

    Args:
        targets_NK: 1 for the classes an image has.
        number: How many.
        rng: Of the draw.
        leave: Leave at least one of each class behind; this goes first.

    Raises:
        ValueError: if so many cannot be taken.
    """
    everything = np.arange(len(targets_NK))
    kept = cover(targets_NK, everything, rng) if leave else everything[:0]
    free = np.setdiff1d(everything, kept)
    if number > len(free):
        raise ValueError(f"{number} of {len(everything)} rows cannot be drawn: {len(free)} are free")
    part_N = np.full(len(everything), -1, dtype=np.int64)
    part_N[kept] = 1
    part_N[rng.permutation(cover(targets_NK, free, rng))[:number]] = 0
    return np.flatnonzero(deal(targets_NK, (number, len(everything) - number), rng, part_N) == 0)


def hold_out(dataset: Dataset, among: Indices, number: int, what: str, rng: np.random.Generator) -> Indices:
    """Hold out `number` of these multi-label images; one of each class stays."""
    try:
        return among[draw_rows(dataset.truth[among], number, rng, leave=True)]
    except ValueError:
        raise UserError(
            f"{what} images cannot be held out of {dataset.name}: it has {len(among)} labelled images, and one of each of its "
            f"{len(dataset.classes)} classes must stay for training."
        ) from None


def keep_labelled(dataset: Dataset, pool: Indices, number: int, rng: np.random.Generator) -> Indices:
    """`number` of these multi-label images, every class among them."""
    kept = pool[draw_rows(dataset.truth[pool], number, rng)]
    if not (dataset.truth[kept] == 1).any(axis=0).all():
        raise UserError(
            f"labels={number} images are too few for the {len(dataset.classes)} classes of {dataset.name}: every class needs an "
            f"image that has it."
        )
    return kept


def multilabel_folds(targets_NK: Targets, k: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Cross-validation folds of N rows as (training, validation) positions; sizes and class shares are even.

    There are min(k, images of the rarest class that two images or more have) folds; none where no class has two. A class with a
    single image is not in every training side.

    Example:
        >>> targets = np.eye(2, dtype=np.int8)[[0, 0, 0, 1, 1, 1]]
        >>> [targets[held_out].sum(axis=0).tolist() for _, held_out in multilabel_folds(targets, 3, seed=0)]
        [[1, 1], [1, 1], [1, 1]]
    """
    if k < 2 or len(targets_NK) == 0 or targets_NK.min() < 0:
        raise ValueError("folds need k >= 2 and targets that are 0 or 1")
    count_K = (targets_NK == 1).sum(axis=0)
    if not (count_K >= 2).any():
        return []
    k = min(k, int(count_K[count_K >= 2].min()))
    sizes = [len(rows) for rows in np.array_split(np.arange(len(targets_NK)), k)]
    fold_N = deal(targets_NK, sizes, np.random.default_rng((seed, 2)))
    return [(np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)) for fold in range(k)]
