"""What is wrong with a data set before anything is trained on it: unreadable images, duplicates, labels. Knows no model.

Every image is decoded once, in parallel; kept of it are its size, two digests and a 64-bit perceptual hash (82 bytes)
and, in a temporary file, a thumbnail of 1 KB.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import UNLABELLED, Dataset
from keepsight.data.duplicates import (
    NEAR_CORRELATION,
    NEAR_DISTANCE,
    SIDE,
    equal_groups,
    near_pairs,
    perceptual_hash,
    thumbnail,
)
from keepsight.data.findings import (
    PAIRS_LISTED,
    TINY,
    Cardinality,
    ClassCount,
    DataReport,
    DuplicateGroup,
    NearPair,
    Sizes,
    find_problems,
)
from keepsight.data.multilabel import class_text
from keepsight.data.scan import BadImage, find_unreadable, read_all

__all__ = ["BadImage", "DataReport", "check_data", "find_unreadable"]


def check_data(
    dataset: Dataset,
    *,
    near: bool = True,
    workers: int | None = None,
    near_distance: int = NEAR_DISTANCE,
    near_correlation: float = NEAR_CORRELATION,
) -> DataReport:
    """Read every image and report what is wrong with images and labels; nothing is changed.

    Args:
        dataset: The data.
        near: Look for near duplicates too (see `keepsight.data.duplicates` for how, and what it costs).
        workers: Threads; one a processor by default.
        near_distance: Largest number of different bits of two perceptual hashes, of 64.
        near_correlation: Smallest correlation of two thumbnails.
    """
    with tempfile.TemporaryFile() as thumbnails:
        facts, bad = _read(dataset, thumbnails if near else None, workers)
        groups = equal_groups(facts["pixels"])
        pairs, scores, complete = np.empty((0, 2), np.int64), np.empty(0, np.float32), True
        if near:
            pairs, scores, complete = _near(dataset, facts, thumbnails, near_distance, near_correlation)
    order = np.argsort(-scores, kind="stable")[:PAIRS_LISTED]
    report = DataReport(
        name=dataset.name,
        images=len(dataset.images),
        labelled=int((dataset.labels != UNLABELLED).sum()),
        parts=dict(Counter(dataset.parts)),
        classes=_class_counts(dataset),
        bad=bad,
        sizes=_sizes(facts),
        tiny=_names(dataset, facts["index"][facts["size"].min(axis=1, initial=TINY) < TINY]),
        constant=_names(dataset, facts["index"][facts["constant"]]),
        duplicates=tuple(_group(dataset, facts, group) for group in groups),
        near=tuple(_pair(dataset, facts["index"][pairs[i]], float(scores[i])) for i in order),
        near_pairs=len(pairs) if near else None,
        near_complete=complete,
        multilabel=_multilabel(dataset),
    )
    return report.model_copy(update={"findings": find_problems(report)})


_FACTS = np.dtype(
    [
        ("index", "i8"),
        ("size", "i8", (2,)),  # width, height
        ("content", "u1", (32,)),  # sha256 of what is stored
        ("pixels", "u1", (16,)),  # blake2b of what was decoded
        ("hash", "u8"),  # perceptual
        ("grey", "?"),
        ("constant", "?"),
    ]
)
"""What is kept of a readable image."""

_Facts = NDArray[np.void]


def _read(dataset: Dataset, thumbnails: BinaryIO | None, workers: int | None) -> tuple[_Facts, tuple[BadImage, ...]]:
    """Facts [R] of the readable images, and the others; thumbnails are written in the order of the facts."""

    def work(index: int, image: Image.Image) -> tuple[_Facts, bytes]:
        pixels_HWC = np.ascontiguousarray(image)
        fact = np.zeros(1, _FACTS)
        fact["index"], fact["size"] = index, image.size
        fact["content"] = np.frombuffer(dataset.images.content_hash(index), np.uint8)
        digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
        digest.update(pixels_HWC.data)
        fact["pixels"] = np.frombuffer(digest.digest(), np.uint8)
        fact["grey"] = (pixels_HWC == pixels_HWC[:, :, :1]).all()
        fact["constant"] = (pixels_HWC == pixels_HWC[:1, :1]).all()
        if thumbnails is None:
            return fact, b""
        small = thumbnail(image)
        fact["hash"] = perceptual_hash(small)
        return fact, small.tobytes()

    facts, bad, count = np.empty(len(dataset.images), _FACTS), [], 0
    for _, result in read_all(dataset.images, np.arange(len(facts)), work, workers):
        if isinstance(result, BadImage):
            bad.append(result)
            continue
        fact, small = result
        facts[count] = fact[0]
        count += 1
        if thumbnails is not None:
            thumbnails.write(small)
    return facts[:count], tuple(bad)


def _near(
    dataset: Dataset, facts: _Facts, thumbnails: BinaryIO, distance: int, correlation: float
) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
    """Pairs of rows of the facts that are near but not equal, their correlations, and whether all pairs were looked at."""
    if not len(facts):
        return np.empty((0, 2), np.int64), np.empty(0, np.float32), True
    parts_R = np.array([("", "train", "val", "test").index(dataset.parts[i]) for i in facts["index"].tolist()])
    # Of equal images in one part one is enough, and images of one colour all look alike.
    key = np.concatenate([facts["pixels"], parts_R[:, None].astype(np.uint8)], axis=1)
    first = np.unique(key.view(np.dtype((np.void, key.shape[1])))[:, 0], return_index=True)[1]
    rows = np.sort(first[~facts["constant"][first]])
    thumbnails.flush()
    stored = np.memmap(thumbnails, np.uint8, "r", shape=(len(facts), SIDE * SIDE))
    pairs, scores, complete = near_pairs(facts["hash"], stored, parts_R, rows, distance, correlation)
    different = (facts["pixels"][pairs[:, 0]] != facts["pixels"][pairs[:, 1]]).any(axis=1)
    return pairs[different], scores[different], complete


def _group(dataset: Dataset, facts: _Facts, rows: NDArray[np.int64]) -> DuplicateGroup:
    indices = facts["index"][rows].tolist()
    return DuplicateGroup(
        names=tuple(dataset.images.name(i) for i in indices),
        parts=tuple(dataset.parts[i] for i in indices),
        labels=tuple(class_text(dataset, i) for i in indices),
        same_files=bool((facts["content"][rows] == facts["content"][rows[0]]).all()),
    )


def _pair(dataset: Dataset, indices: NDArray[np.int64], score: float) -> NearPair:
    a, b = sorted(indices.tolist())
    return NearPair(
        names=(dataset.images.name(a), dataset.images.name(b)),
        parts=(dataset.parts[a], dataset.parts[b]),
        labels=(class_text(dataset, a), class_text(dataset, b)),
        correlation=round(score, 5),
    )


def _names(dataset: Dataset, indices: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(dataset.images.name(i) for i in indices.tolist())


def _class_counts(dataset: Dataset) -> tuple[ClassCount, ...]:
    """One pass over the images, however many classes there are."""
    counts: list[Counter[str]] = [Counter() for _ in dataset.classes]
    if dataset.targets is not None:
        for row, label in np.argwhere(dataset.targets == 1).tolist():
            counts[label][dataset.parts[row]] += 1
    else:
        for label, part in zip(dataset.labels.tolist(), dataset.parts, strict=True):
            if label != UNLABELLED:
                counts[label][part] += 1
    return tuple(ClassCount(name=name, parts=dict(c)) for name, c in zip(dataset.classes, counts, strict=True))


def _multilabel(dataset: Dataset) -> Cardinality | None:
    if dataset.targets is None:
        return None
    classes_N = (dataset.targets[dataset.labels != UNLABELLED] == 1).sum(axis=1)
    learnt_N = np.array([part in ("", "train") for part in dataset.parts]) & (dataset.labels != UNLABELLED)
    training = dataset.targets[learnt_N] == 1
    always = training.all(axis=0) & bool(len(training))
    return Cardinality(
        classes=float(classes_N.mean()) if len(classes_N) else 0.0,
        none=int((classes_N == 0).sum()),
        always=tuple(name for name, every in zip(dataset.classes, always.tolist(), strict=True) if every),
    )


def _sizes(facts: _Facts) -> Sizes | None:
    if not len(facts):
        return None
    (width, height) = ((int(side.min()), float(np.median(side)), int(side.max())) for side in facts["size"].T)
    grey = int(facts["grey"].sum())
    return Sizes(width=width, height=height, grey=grey, colour=len(facts) - grey)
