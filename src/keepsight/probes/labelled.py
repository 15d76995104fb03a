"""What the probes of labelled data sets share: the images and their division, the logistic probe, the mean over sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from keepsight.core import UNLABELLED, Config, Dataset, Example, ImageList, Readout, Score, UserError, View
from keepsight.core.probe import Rows
from keepsight.core.progress import log
from keepsight.data.demo import read_embedded
from keepsight.data.joined import JoinedImages
from keepsight.data.splits import Indices, allocate, pick, stratified_folds
from keepsight.data.subset import SubsetImages
from keepsight.heads.linear import LinearHead, standardisation
from keepsight.heads.logistic import cross_validate, fit_logistic_ladder, row_space

BUNDLED = ("mnist-5k", "digits", "fashion-mnist", "stamps")
"""What there is without a data set of the user's own; those whose packages are not installed are left out."""

EXAMPLES_PER_SET = 6
"""Test images of each set that the page shows."""

SHUFFLES = 10
"""Orders of shuffled labels, where there is one of the labels as they are."""


class LabelledConfig(Config):
    """Which images of each data set, and what is read of them; alike for all such probes, so that they share features.

    Attributes:
        per_set: Images of each set, at most; drawn with the classes in proportion.
        least: Images that a class must have, and of which so many are taken at least; rarer classes are left out.
        test: Share of them that is measured on. A set with a test part of its own is measured on that.
        readout: As text.
        size: Side of the backbone's input, px; None for its own.
        seed: Of the draw and the division.
    """

    per_set: int = Field(default=500, ge=4)
    least: int = Field(default=30, ge=2)
    test: float = Field(default=0.4, gt=0, lt=1)
    readout: str = "last:cls+mean"
    size: int | None = Field(default=56, ge=14)
    seed: int = Field(default=0, ge=0)

    @field_validator("readout")
    @classmethod
    def _readout(cls, text: str) -> str:
        return str(Readout.parse(text))

    @model_validator(mode="after")
    def _both(self) -> LabelledConfig:
        if not 0 < round(self.least * self.test) < self.least:
            raise ValueError(f"least={self.least} images of a class cannot be divided with test={self.test}")
        return self


class LogisticRule(Config):
    """How a logistic probe is fitted.

    Attributes:
        strengths: The ladder of L2 penalties, in units of the standardised features' mean squared length.
        folds: Of the cross-validation; fewer where the smallest class has fewer images.
        default_strength: Taken where a class has a single image, which allows no cross-validation: always the same, whatever the
            images are.
        search_tolerance: Relative accuracy of the solutions that the cross-validation compares.
        final_tolerance: Relative accuracy of the solution that predicts.
    """

    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=tuple(10.0**e for e in range(-5, 0)), min_length=1
    )
    folds: int = Field(default=3, ge=2)
    default_strength: float = Field(default=1e-3, gt=0)
    search_tolerance: float = Field(default=0.1, gt=0)
    final_tolerance: float = Field(default=0.01, gt=0)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One data set of a probe: what is learnt from and what is measured on, as rows of the probe's images.

    Attributes:
        name: Of the set.
        classes: K names.
        train: Rows [N].
        test: Rows [T].
        train_labels: [N].
        test_labels: [T].
    """

    name: str
    classes: tuple[str, ...]
    train: Rows
    test: Rows
    train_labels: Indices
    test_labels: Indices

    def features(self, view: View, readout: str) -> tuple[Tensor, Tensor]:
        """[N, F] and [T, F]."""
        parsed = Readout.parse(readout)
        return view.vectors(self.train, parsed), view.vectors(self.test, parsed)

    def score(self, metric: str, said_ST: NDArray[np.int64]) -> Score:
        """Accuracy of S answers to each test image; every class weighs the same, so that chance is 1/K whatever their sizes."""
        k = len(self.classes)
        counts = np.bincount(self.test_labels, minlength=k)
        weights_T = 1 / (k * counts[self.test_labels])
        right_ST = (said_ST == self.test_labels).astype(np.float64)
        return Score(metric, self.name, right_ST * weights_T, weights_T, units=self.test, chance=1 / k, shown=False)

    def examples(self, said_T: NDArray[np.int64]) -> tuple[Example, ...]:
        """Some test images, spread over the classes."""
        places = np.linspace(0, len(self.test) - 1, min(EXAMPLES_PER_SET, len(self.test))).astype(int)
        chosen = np.argsort(self.test_labels, kind="stable")[places].tolist()
        return tuple(
            Example(
                int(self.test[i]),
                self.classes[self.test_labels[i]],
                self.classes[said_T[i]],
                bool(said_T[i] == self.test_labels[i]),
            )
            for i in chosen
        )


@dataclass(frozen=True, slots=True)
class LabelledSets:
    """Data sets and their images, one behind the other."""

    images: ImageList
    sets: tuple[LabelledSet, ...]

    def key(self, name: str, config: Config) -> str:
        """See `Probe.key`."""
        found = hashlib.sha256(f"{name} {config.model_dump_json()}".encode())
        for i in range(len(self.images)):
            found.update(self.images.content_hash(i))
        for s in self.sets:
            parts = [part.tolist() for part in (s.train, s.test, s.train_labels, s.test_labels)]
            found.update(json.dumps([s.name, s.classes, *parts]).encode())
        return found.hexdigest()


def load_labelled(config: LabelledConfig, datasets: Sequence[Dataset] | None) -> LabelledSets:
    """The division of some data sets, by default the bundled ones; it depends on labels, parts and the seed alone.

    Raises:
        UserError: A set is multi-label, has fewer than two classes that are large enough, or more of them than fit.
    """
    if datasets is None:
        datasets = _bundled()
    if not datasets or len({d.name for d in datasets}) < len(datasets):
        raise UserError("The labelled data sets of a probe must be at least one, each with a name of its own.")
    lists, sets, first = dict[str, ImageList](), [], 0
    for dataset in datasets:
        train, test, number = _divided(dataset, config)
        lists[dataset.name] = SubsetImages(dataset.images, np.concatenate([train, test]))
        middle, last = first + len(train), first + len(train) + len(test)
        sets.append(
            LabelledSet(
                dataset.name,
                tuple(dataset.classes[old] for old in number),
                np.arange(first, middle, dtype=np.int64),
                np.arange(middle, last, dtype=np.int64),
                *(np.array([number[int(k)] for k in dataset.labels[rows]], dtype=np.int64) for rows in (train, test)),
            )
        )
        first = last
    return LabelledSets(JoinedImages(lists), tuple(sets))


def _bundled() -> tuple[Dataset, ...]:
    found = []
    for name in BUNDLED:
        try:
            found.append(read_embedded(name))
        except UserError as error:
            log.warning("%s is left out: %s", name, error)
    return tuple(found)


def _divided(dataset: Dataset, config: LabelledConfig) -> tuple[Indices, Indices, dict[int, int]]:
    """Training and test images of a set, and the new index of each class that is kept."""
    if dataset.targets is not None:
        raise UserError(f"The data set {dataset.name} is multi-label: probes ask for one class an image.")
    labels_N, parts_N, k = dataset.labels, np.array(dataset.parts, dtype=object), len(dataset.classes)
    rng = np.random.default_rng((config.seed, 5))
    few_test = round(config.least * config.test)
    few_train = config.least - few_test
    has_label = labels_N != UNLABELLED
    own = has_label & (parts_N == "test")
    rest = np.flatnonzero(has_label & (parts_N != "test") & (parts_N != "val"))
    if own.any():
        train_pool, test_pool = rest, np.flatnonzero(own)
    else:
        counts_K = np.bincount(labels_N[rest], minlength=k)
        rest = rest[counts_K[labels_N[rest]] >= config.least]
        counts_K = np.bincount(labels_N[rest], minlength=k)
        low_K = np.where(counts_K > 0, few_test, 0)
        high_K = np.where(counts_K > 0, counts_K - few_train, 0)
        total = int(np.clip(round(config.test * len(rest)), low_K.sum(), high_K.sum()))
        taken_K = allocate(counts_K, total, low_K, high_K) if len(rest) else counts_K
        test_pool = rest[pick(labels_N[rest], taken_K, rng)]
        train_pool = np.setdiff1d(rest, test_pool)
    enough_K = [
        np.bincount(labels_N[pool], minlength=k) >= few
        for pool, few in ((train_pool, few_train), (test_pool, few_test))
    ]
    kept = np.flatnonzero(enough_K[0] & enough_K[1])
    if len(kept) < 2 or len(kept) * config.least > config.per_set:
        raise UserError(
            f"The data set {dataset.name} has {len(kept)} classes with {few_train} images to learn from and {few_test} to measure "
            f"on: a probe of per_set={config.per_set} images needs from 2 to {config.per_set // config.least} such classes; change "
            f"per_set or least."
        )
    number = {int(old): new for new, old in enumerate(kept)}
    of_test = round(config.per_set * config.test)
    train = _drawn(train_pool, labels_N, kept, config.per_set - of_test, few_train, rng)
    test = _drawn(test_pool, labels_N, kept, of_test, few_test, rng)
    return train, test, number


def _drawn(
    pool: Indices, labels_N: Indices, kept: Indices, at_most: int, low: int, rng: np.random.Generator
) -> Indices:
    """Some of the pool, the kept classes in proportion, but at least `low` of each."""
    pool = pool[np.isin(labels_N[pool], kept)]
    counts_K = np.bincount(labels_N[pool], minlength=int(kept.max()) + 1)
    low_K = np.where(counts_K > 0, low, 0)
    total = min(max(at_most, int(low_K.sum())), len(pool))
    return pool[pick(labels_N[pool], allocate(counts_K, total, low_K, counts_K), rng)]


def fit_logistic(
    x_NF: Tensor, labels_N: Indices, classes: int, rule: LogisticRule, seed: int, pool_PF: Tensor | None = None
) -> LinearHead:
    """Multinomial logistic regression on standardised features, its strength cross-validated on these rows.

    Args:
        x_NF: Features; every class must have a row.
        labels_N: Class indices.
        classes: K.
        rule: See there.
        seed: Shuffles the folds.
        pool_PF: What features are standardised on, without labels; by default the rows themselves. On a handful of rows every
            feature would look as wide as any other, and the few that tell classes apart would drown.
    """
    pool_PF = x_NF if pool_PF is None else pool_PF
    mean_F, scale_F = standardisation(pool_PF)
    # What is left of a feature that is constant is rounding, which a probe would spend its time on: it is divided away.
    live_F = ((pool_PF - mean_F) / scale_F).square().mean(dim=0) > 0.5
    scale_F = torch.where(live_F, scale_F, torch.inf)
    z_NF = (x_NF - mean_F) / scale_F
    head = LinearHead(x_NF.shape[1], classes)
    head.mean_F.copy_(mean_F)
    head.scale_F.copy_(scale_F)
    y_N = torch.from_numpy(labels_N)
    if not bool(z_NF.any()):  # a collapsed representation: the classes' frequencies are all there is
        with torch.no_grad():
            head.bias_K.copy_(torch.bincount(y_N, minlength=classes).log())
        return head
    space = row_space(z_NF)
    strength, folds = rule.default_strength, stratified_folds(labels_N, rule.folds, seed)
    if folds:
        best, _ = cross_validate(space, y_N, classes, rule.strengths, folds, rule.search_tolerance)
        strength = rule.strengths[best]
    fit = fit_logistic_ladder(space, y_N, classes, [strength * space.squared_length], tolerance=rule.final_tolerance)
    weight_KF, bias_K = fit.coefficients(split=0, strength=0)
    with torch.no_grad():
        head.weight_KF.copy_(weight_KF)
        head.bias_K.copy_(bias_K)
    return head


def mean_over(scores: Sequence[Score]) -> Score:
    """The mean of the same metric over data sets, each weighing the same; a single set is its own mean."""
    share = 1 / len(scores)
    totals = [share / score.weights.sum() for score in scores]
    return Score(
        scores[0].metric,
        scores[0].dataset if len(scores) == 1 else f"mean of {len(scores)} sets",
        np.concatenate([s.values * total for s, total in zip(scores, totals, strict=True)], axis=1),
        np.concatenate([s.weights * total for s, total in zip(scores, totals, strict=True)]),
        units=np.concatenate([s.units for s in scores]),
        chance=float(np.mean([s.chance for s in scores if s.chance is not None])),
    )


def headlines(scores: Sequence[Score]) -> tuple[Score, ...]:
    """The mean over the sets of each metric, and behind the means, where there are several sets, their own scores."""
    metrics = dict.fromkeys(score.metric for score in scores)
    means = tuple(mean_over([score for score in scores if score.metric == metric]) for metric in metrics)
    return means if len(means) == len(scores) else (*means, *scores)


def permuted(labels_N: Indices, shuffled: bool, *seed: int) -> Indices:
    """The labels, or the same labels in another order."""
    return np.random.default_rng(seed).permutation(labels_N) if shuffled else labels_N


def labellings(each: LabelledSet, shuffled: bool, seed: int) -> list[Indices]:
    """The training labels; shuffled, `SHUFFLES` orders of them.

    One order would not do: whoever takes all images of a class for another one is right about all of a third class or none.
    """
    return [permuted(each.train_labels, shuffled, seed, 6, number) for number in range(SHUFFLES if shuffled else 1)]
