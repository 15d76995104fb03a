"""Which images are tested on, learnt from, validated on and used without labels. Knows no pixels and no model.

The test part is drawn once, from the split seed alone. Each seed then draws its own labelled subset and validation
part. The labels of pool images outside of the labelled subset stay in the data set but are in no
`labelled` list: methods get indices.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from keepsight.core import UNLABELLED, Config, Dataset, UserError
from keepsight.core.files import write_text
from keepsight.core.progress import log
from keepsight.data.multilabel import hold_out, keep_labelled, multilabel_folds

Indices = NDArray[np.int64]


class SplitConfig(Config):
    """How a data set is split; a part that the data set brings itself is used as it is instead.

    Attributes:
        labels: How many labelled training images to keep, validation included, in proportion to the classes and at
            least one each; the other labelled images become unlabelled. None, or more than there are, keeps all.
        test: Share (a float below 1) or number (an integer) of the labelled images to hold out; None or 0 holds none.
        validation: Share of the kept labels to validate on.
        seed: The split seed.
    """

    labels: int | None = Field(default=None, ge=1)
    test: int | float | None = Field(default=0.2, ge=0)
    validation: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("test")
    @classmethod
    def _test(cls, test: int | float | None) -> int | float | None:
        if isinstance(test, float) and test >= 1:
            raise ValueError("test is a share below 1 or a whole number of images")
        return test


@dataclass(frozen=True, slots=True)
class Draw:
    """What one seed learns from: ascending indices into the data set, without overlap.

    Attributes:
        seed: The seed.
        labelled: Images whose labels are learnt from.
        validation: Images whose labels may choose between checkpoints and settings.
        unlabelled: Images that are used without labels, whether or not the data set knows their labels.
    """

    seed: int
    labelled: Indices
    validation: Indices
    unlabelled: Indices


@dataclass(frozen=True, slots=True)
class Splits:
    """The test part, one draw a seed, and the digest of the data set they belong to.

    Attributes:
        test: Ascending indices; empty if nothing was held out.
        draws: One per seed.
        digest: Sha256 (hex) over the data set's image names, classes, labels and parts.
    """

    test: Indices
    draws: tuple[Draw, ...]
    digest: str

    def __post_init__(self) -> None:
        for draw in self.draws:
            together = np.concatenate([self.test, draw.labelled, draw.validation, draw.unlabelled])
            if len(np.unique(together)) != len(together):
                raise ValueError(f"the parts of seed {draw.seed} overlap")

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        draws = [
            {
                "seed": d.seed,
                "labelled": d.labelled.tolist(),
                "validation": d.validation.tolist(),
                "unlabelled": d.unlabelled.tolist(),
            }
            for d in self.draws
        ]
        write_text(path, json.dumps({"digest": self.digest, "test": self.test.tolist(), "draws": draws}) + "\n")

    @classmethod
    def read(cls, path: Path, dataset: Dataset) -> Splits:
        """Read what `save` wrote.

        Raises:
            UserError: if the file is damaged, or the data set is no longer the one that was split.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parts = ("labelled", "validation", "unlabelled")
            draws = tuple(Draw(d["seed"], *(_indices(d[part]) for part in parts)) for d in content["draws"])
            splits = cls(test=_indices(content["test"]), draws=draws, digest=content["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"The splits {path} cannot be read ({error}): start a new run.") from error
        if splits.digest != dataset_digest(dataset):
            raise UserError(
                f"The data set {dataset.name} changed since the splits {path} were made (images, labels or parts were "
                f"added, removed or renamed): restore it or start a new run."
            )
        return splits


def dataset_digest(dataset: Dataset) -> str:
    """Sha256 (hex) over image names, classes, labels and parts; pixels are left to the feature cache's hashes."""
    names = [dataset.images.name(i) for i in range(len(dataset.images))]
    content = json.dumps([names, dataset.classes, dataset.truth.tolist(), dataset.parts])
    return hashlib.sha256(content.encode()).hexdigest()


def make_splits(dataset: Dataset, config: SplitConfig, seeds: tuple[int, ...]) -> Splits:
    """Split a data set once for all seeds.

    Counts are proportional to the class sizes (largest remainder). A drawn test part takes at least one image of each
    class where it can, and never the last labelled one, so that every class can be learnt. For one seed, a smaller
    number of labels of balanced classes is a subset of a larger one. Multi-label data is split by `multilabel.draw_rows`.

    Raises:
        UserError: if a class has no training label, a test or validation image has none, there are fewer labels than
            classes, or more is to be held out than there is.
    """
    parts = np.array(dataset.parts, dtype=object)
    has_label = dataset.labels != UNLABELLED
    own_test, own_validation = parts == "test", parts == "val"
    pool = np.flatnonzero(has_label & ~own_test & ~own_validation)
    _check_classes(dataset, pool, np.flatnonzero(~has_label & (own_test | own_validation)))
    if own_test.any():
        asked = "test" in config.model_fields_set and config.test is not None
        if asked and config.test != np.count_nonzero(own_test):
            log.warning("%s brings its own test part, so test=%s is not used.", dataset.name, config.test)
        test = np.flatnonzero(own_test)
    else:
        test = _draw_test(dataset, pool, config)
    pool = np.setdiff1d(pool, test)
    if config.labels is not None and config.labels > len(pool):
        log.warning(
            "%s has %d labelled training images, fewer than labels=%d: all are used.",
            dataset.name,
            len(pool),
            config.labels,
        )
    without_label = np.flatnonzero(~has_label)
    draws = tuple(_draw(dataset, config, seed, pool, without_label, np.flatnonzero(own_validation)) for seed in seeds)
    return Splits(test=_indices(test), draws=draws, digest=dataset_digest(dataset))


def folds_of(dataset: Dataset, indices: Indices, k: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Cross-validation folds of these labelled images, as positions in `indices`; none where there are too few."""
    if dataset.targets is not None:
        return multilabel_folds(dataset.targets[indices], k, seed)
    return stratified_folds(dataset.labels[indices], k, seed)


def stratified_folds(labels: Indices, k: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Cross-validation folds of N labels as (training, validation) positions; fold sizes and class shares are even.

    There are min(k, size of the smallest class) folds, so that every training side has every class and every fold every
    class; none if a class has a single label.

    Example:
        >>> [len(val) for _, val in stratified_folds(np.array([0, 0, 0, 1, 1, 1]), k=5, seed=0)]
        [2, 2, 2]
    """
    if k < 2 or len(labels) == 0 or labels.min() < 0:
        raise ValueError("folds need k >= 2 and labels that are class indices")
    _, class_N, counts = np.unique(labels, return_inverse=True, return_counts=True)
    k = min(k, int(counts.min()))
    if k < 2:
        return []
    rng = np.random.default_rng((seed, 2))
    by_class = rng.permutation(len(labels))
    by_class = by_class[np.argsort(class_N[by_class], kind="stable")]
    fold_N = np.empty(len(labels), dtype=np.int64)
    fold_N[by_class] = np.arange(len(labels)) % k  # dealt out one after another, each class where the last one ended
    return [(np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)) for fold in range(k)]


def _check_classes(dataset: Dataset, pool: Indices, unlabelled_held_out: Indices) -> None:
    if len(unlabelled_held_out):
        raise UserError(
            f"{dataset.name} has {len(unlabelled_held_out)} test or validation images without a label (first: "
            f"{dataset.images.name(int(unlabelled_held_out[0]))}): label them or move them to the unlabelled images."
        )
    counts = class_counts(dataset, pool)
    if len(absent := np.flatnonzero(counts == 0)):
        names = ", ".join(repr(dataset.classes[c]) for c in absent[:5])
        raise UserError(
            f"{dataset.name} has no labelled training image of {len(absent)} of its classes ({names}): a class that "
            f"is only in the test or val part cannot be learnt, so add training images or remove it."
        )


def class_counts(dataset: Dataset, indices: Indices) -> Indices:
    """How many of these labelled images have each class [K]."""
    if dataset.targets is not None:
        return _indices((dataset.targets[indices] == 1).sum(axis=0))
    return _indices(np.bincount(dataset.labels[indices], minlength=len(dataset.classes)))


def _draw_test(dataset: Dataset, pool: Indices, config: SplitConfig) -> Indices:
    if not config.test:
        return _indices([])
    if dataset.targets is not None:
        total = max(round(config.test * len(pool)), 1) if isinstance(config.test, float) else config.test
        return hold_out(dataset, pool, total, f"test={config.test}", np.random.default_rng((config.seed, 0)))
    labels = dataset.labels[pool]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    testable = int(np.count_nonzero(counts > 1))
    if isinstance(config.test, float):
        total = min(max(round(config.test * len(pool)), testable), int((counts - 1).sum()))
    else:
        total = config.test
    if total > (counts - 1).sum():
        raise UserError(
            f"test={total} images cannot be held out of {dataset.name}: it has {len(pool)} labelled images, and one "
            f"of each of its {len(counts)} classes must stay for training."
        )
    low = (counts > 1).astype(np.int64) if total >= testable else np.zeros_like(counts)
    taken = allocate(counts, total, low, counts - 1)
    if len(untested := np.flatnonzero(taken == 0)):
        names = ", ".join(repr(dataset.classes[c]) for c in untested[:5])
        log.warning(
            "%d classes are in training but not in the test part, which has too few labelled images for them: %s.",
            len(untested),
            names,
        )
    return pool[pick(labels, taken, np.random.default_rng((config.seed, 0)))]


def _draw(
    dataset: Dataset, config: SplitConfig, seed: int, pool: Indices, without_label: Indices, own_validation: Indices
) -> Draw:
    rng = np.random.default_rng((config.seed, 1, seed))
    kept = pool
    if config.labels is not None and config.labels < len(pool) and dataset.targets is not None:
        kept = keep_labelled(dataset, pool, config.labels, rng)
    elif config.labels is not None and config.labels < len(pool):
        counts = class_counts(dataset, pool)
        if config.labels < len(counts):
            raise UserError(
                f"labels={config.labels} is fewer than the {len(counts)} classes of {dataset.name}: every class needs "
                f"at least one."
            )
        taken = allocate(counts, config.labels, np.ones_like(counts), counts)
        kept = pool[pick(dataset.labels[pool], taken, rng)]
    validation = own_validation
    if config.validation > 0 and len(own_validation) == 0 and dataset.targets is not None:
        total = max(1, round(config.validation * len(kept)))
        validation = hold_out(dataset, kept, total, f"validation={config.validation}: {total}", rng)
    elif config.validation > 0 and len(own_validation) == 0:
        counts = class_counts(dataset, kept)
        total = min(max(1, round(config.validation * len(kept))), int((counts - 1).sum()))
        if total == 0:
            raise UserError(
                f"validation={config.validation} needs a class with two labels or more, but {dataset.name} keeps one "
                f"of each: keep more labels or set validation to 0."
            )
        testable = int(np.count_nonzero(counts > 1))
        low = (counts > 1).astype(np.int64) if total >= testable else np.zeros_like(counts)
        taken = allocate(counts, total, low, counts - 1)
        validation = kept[pick(dataset.labels[kept], taken, rng)]
    return Draw(
        seed=seed,
        labelled=_indices(np.setdiff1d(kept, validation)),
        validation=_indices(validation),
        unlabelled=_indices(np.union1d(without_label, np.setdiff1d(pool, kept))),
    )


def allocate(counts_K: Indices, total: int, low_K: Indices, high_K: Indices) -> Indices:
    """Whole numbers [K] with the given sum, as near to proportional to counts as low <= number <= high allows."""
    ideal_K = total * counts_K / counts_K.sum()
    taken_K = np.clip(np.floor(ideal_K).astype(np.int64), low_K, high_K)
    while taken_K.sum() < total:
        taken_K[np.argmax(np.where(taken_K < high_K, ideal_K - taken_K, -np.inf))] += 1
    while taken_K.sum() > total:
        taken_K[np.argmax(np.where(taken_K > low_K, taken_K - ideal_K, -np.inf))] -= 1
    return _indices(taken_K)


def pick(labels_N: Indices, taken_K: Indices, rng: np.random.Generator) -> Indices:
    """Ascending positions of `taken` random members of each class."""
    picked = []
    for c, n in enumerate(taken_K):
        members = np.flatnonzero(labels_N == c)
        picked.append(rng.permutation(members)[:n])
    return _indices(np.sort(np.concatenate(picked)))


def _indices(values: object) -> Indices:
    return np.asarray(values, dtype=np.int64)
