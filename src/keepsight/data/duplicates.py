"""Which images are the same, or nearly: groups of equal digests, and pairs by perceptual hash. Knows no labels.

Near duplicates are found in two steps. First, pairs whose 64-bit DCT hashes (pHash, the package ImageHash) differ in at
most `NEAR_DISTANCE` bits: every pair is compared, by exclusive-or and bit count in numpy, some 3e8 pairs a second on one
thread (about 2 s for 60,000 against 10,000 images, 8 s for 70,000 among themselves; it grows with the square). Small
pictures collide in this hash: thousands of pairs of different digits at 28 px do. So, second, a pair counts only if the
grey 32 x 32 thumbnails correlate by at least `NEAR_CORRELATION`.

How often that finds copies, and how often different images, is printed by `benchmarks/near_duplicates.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

NEAR_DISTANCE = 8
"""Bits of 64 in which the hashes of near duplicates may differ."""

NEAR_CORRELATION = 0.99
"""Smallest correlation of the thumbnails of near duplicates."""

SIDE = 32
"""Side of a thumbnail, px: what the hash is computed from."""

CANDIDATES_AT_MOST = 5_000_000
"""Pairs that the second step looks at; more means that most images look alike (frames of one film)."""

_ROWS = 64  # of the comparison at once: 64 x 70,000 hashes are 36 MB


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Grey [32, 32], the aspect ratio not kept."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hash(thumbnail_HW: NDArray[np.uint8]) -> int:
    """The 64 bits of pHash: of a thumbnail they are the same as of its image, since this is its first step.

    Example:
        >>> grey = np.arange(1024, dtype=np.uint8).reshape(32, 32)
        >>> perceptual_hash(grey) == perceptual_hash(grey // 2)
        True
    """
    bits = imagehash.phash(Image.fromarray(thumbnail_HW)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def equal_groups(digests_ND: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Rows [2 or more] that are equal, ascending within a group, groups in the order of their first row.

    Example:
        >>> equal_groups(np.array([[1], [2], [1], [1]], np.uint8))
        [array([0, 2, 3])]
    """
    rows = np.ascontiguousarray(digests_ND).view(np.dtype((np.void, digests_ND.shape[1])))[:, 0]
    _, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    groups = [order[end - count : end] for end, count in zip(ends, counts, strict=True) if count > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(
    hashes_R: NDArray[np.uint64],
    thumbnails_RD: NDArray[np.uint8],
    groups_R: NDArray[np.int64],
    rows_N: NDArray[np.int64],
    distance: int = NEAR_DISTANCE,
    correlation: float = NEAR_CORRELATION,
) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
    """Near duplicates of different groups (or any two, where there is one group only).

    Args:
        hashes_R: Perceptual hashes.
        thumbnails_RD: Thumbnails, 1,024 bytes each; best a memory map, since few of them are looked at.
        groups_R: Which part of a split an image is in, as a number.
        rows_N: Which of the R images are compared.
        distance: Largest number of different bits.
        correlation: Smallest correlation of the thumbnails.

    Returns:
        Pairs of rows [M, 2], their correlations [M], and whether all were looked at (see `CANDIDATES_AT_MOST`).
    """
    found: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    looked = 0
    for candidates in _candidates(hashes_R[rows_N], groups_R[rows_N], distance):
        pairs = rows_N[candidates]
        for start in range(0, len(pairs), 4096):
            block = pairs[start : start + 4096]
            left, right = (_unit(thumbnails_RD[block[:, side]]) for side in (0, 1))
            score = np.einsum("md,md->m", left, right)
            found.append(block[score >= correlation])
            scores.append(score[score >= correlation])
        looked += len(pairs)
        if looked >= CANDIDATES_AT_MOST:
            return np.concatenate(found), np.concatenate(scores), False
    return np.concatenate(found), np.concatenate(scores), True


def _candidates(
    hashes_N: NDArray[np.uint64], groups_N: NDArray[np.int64], distance: int
) -> Iterator[NDArray[np.int64]]:
    """Pairs [M, 2] of rows whose hashes are near: each row with those of later groups, or with all later rows."""
    order = np.argsort(groups_N, kind="stable")
    hashes, groups = hashes_N[order], groups_N[order]
    one_group = len(np.unique(groups)) <= 1
    for group in np.unique(groups):
        begin, end = np.searchsorted(groups, group), np.searchsorted(groups, group, side="right")
        for first in range(int(begin), int(end), _ROWS):
            block = hashes[first : min(first + _ROWS, int(end))]
            others = first if one_group else int(end)
            near = np.bitwise_count(block[:, None] ^ hashes[None, others:]) <= distance
            left, right = np.nonzero(near)
            left, right = left + first, right + others
            yield np.stack([order[left], order[right]], axis=1)[left < right]


def _unit(pixels_MD: NDArray[np.uint8]) -> NDArray[np.float32]:
    centred = pixels_MD.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    # A constant thumbnail correlates with nothing.
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return unit
