"""Multiple-choice options whose wrong answers are balanced against the right ones. Knows no image and no probe.

Whoever answers by the frequency of the categories alone is right exactly as often as guessing: over all items each category is a
wrong option exactly `options - 1` times as often as it is the truth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_SWEEPS = 8  # exchanges tried for each place; the first arrangement pairs the same categories again and again


def balanced(truth_N: Indices, options: int, seed: int) -> Indices:
    """Places [M], ascending, of the most items that can be balanced: no category may be the truth of more than one in `options`.

    Items of too frequent categories are left out at random.

    Example:
        >>> balanced(np.array([0, 0, 0, 1, 2]), 2, seed=0).size
        4
    """
    order = np.random.default_rng((seed, 1)).permutation(len(truth_N))
    _, label_N = np.unique(truth_N, return_inverse=True)
    rank_N = np.empty(len(truth_N), dtype=np.int64)  # of an item among those of its category, in random order
    for label in range(int(label_N.max(initial=-1)) + 1):
        members = order[label_N[order] == label]
        rank_N[members] = np.arange(len(members))
    for most in range(int(rank_N.max(initial=-1)) + 1, 0, -1):
        kept = np.flatnonzero(rank_N < most)
        if most * options <= len(kept):
            return kept
    return np.empty(0, dtype=np.int64)


def draw_options(truth_N: Indices, options: int, seed: int) -> Indices:
    """Options [N, options] of N items, different ones within an item, in random order; one of them is the truth.

    Raises:
        ValueError: A category is the truth of more than one item in `options` (see `balanced`).

    Example:
        >>> found = draw_options(np.array([0, 1, 2, 3]), 4, seed=0)
        >>> np.sort(found, axis=1).tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """
    n = len(truth_N)
    if n == 0 or np.unique(truth_N, return_counts=True)[1].max() * options > n:
        raise ValueError("no category may be the truth of more than one item in so many options")
    rng = np.random.default_rng((seed, 2))
    order = np.argsort(truth_N, kind="stable")
    # Sorted round a circle, equal truths stand together, and places at least a run's length apart differ in category.
    rounds = np.stack([np.roll(truth_N[order], -(column * n // options)) for column in range(options)], axis=1)
    found = np.empty_like(rounds)
    found[order] = rounds
    items = found.tolist()  # lists: numpy would take ten times as long for single numbers
    for column in range(1, options):
        for _ in range(_SWEEPS):
            for a, b in rng.permutation(n)[: n // 2 * 2].reshape(-1, 2).tolist():
                # Exchanging within a column keeps how often a category is in it.
                one, other = items[a], items[b]
                if one[column] not in other and other[column] not in one:
                    one[column], other[column] = other[column], one[column]
    return rng.permuted(np.array(items, dtype=np.int64), axis=1)
