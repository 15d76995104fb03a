"""What features lost between before and after, on labelled images that were not trained on.

Knows the features of N images as two networks see them, and the images' labels; no network and no image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Config
from keepsight.data.splits import stratified_folds
from keepsight.evaluate.classification import Floats, confidence_bins
from keepsight.evaluate.intervals import DRAWS
from keepsight.heads.linear import standardisation
from keepsight.heads.logistic import cross_validate, fit_logistic_ladder, row_space
from keepsight.heads.neighbours import NeighbourHead
from keepsight.objectives.similarity import StreamingCKA, procrustes

Labels = NDArray[np.int64]

PICTURE_AXES = 50
"""Principal axes of each representation that the rotation of the picture is found on."""

WEIGHTS_AT_ONCE = 4_000_000
"""Numbers of the largest array of resampling weights."""


class ProbeRule(Config):
    """How k-NN and the linear probe are fitted; the same rule before and after.

    Attributes:
        neighbours: k of k-NN; fixed, so that nothing is chosen.
        folds: Every image is predicted once, by a probe that did not see it.
        inner_folds: Folds of the choice of the penalty, inside of each fold's training images.
        strengths: The ladder of L2 penalties, in units of the features' mean squared length.
        search_tolerance: Relative accuracy of the solutions that the choice compares.
        final_tolerance: Relative accuracy of the solution that predicts.
    """

    neighbours: int = Field(default=10, ge=1)
    folds: int = Field(default=5, ge=2)
    inner_folds: int = Field(default=3, ge=2)
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = tuple(10.0**e for e in range(-6, 0))
    search_tolerance: float = Field(default=0.1, gt=0)
    final_tolerance: float = Field(default=0.01, gt=0)


@dataclass(frozen=True, slots=True)
class CrossFitted:
    """Class probabilities [N, K] of N images, each from a probe that did not see it."""

    knn_NK: Floats
    probe_NK: Floats


def cross_fitted(x_NF: Tensor, labels_N: Labels, num_classes: int, rule: ProbeRule, seed: int = 0) -> CrossFitted:
    """k-NN and the logistic probe on features, cross-fitted over stratified folds that depend on labels and seed alone.

    The penalty is chosen inside of each fold's training images, so that no image has a say in how it is predicted; two sets of
    features are treated by the same rule on the same folds, each with the penalty that suits it.

    Raises:
        ValueError: A class has fewer than two images.

    Example:
        >>> x_NF = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
        >>> found = cross_fitted(x_NF, np.tile([0, 1], 20), 2, ProbeRule())
        >>> found.probe_NK.argmax(axis=1)[:4].tolist()
        [0, 1, 0, 1]
    """
    folds = stratified_folds(labels_N, rule.folds, seed)
    if not folds:
        raise ValueError("every class needs two images, so that one can be predicted by the other")
    knn_NK, probe_NK = (np.zeros((len(labels_N), num_classes)) for _ in range(2))
    x_NF, y_N = x_NF.float(), torch.from_numpy(labels_N)
    for training, held_out in folds:
        mean_F, scale_F = standardisation(x_NF[training])
        x_TF, y_T = x_NF[training], y_N[training]
        head = NeighbourHead(x_NF.shape[1], num_classes, len(x_TF), min(rule.neighbours, len(x_TF)))
        head.store(x_TF, F.one_hot(y_T, num_classes).to(x_TF), mean_F, scale_F)
        knn_NK[held_out] = torch.softmax(head(x_NF[held_out]).double(), dim=1).numpy()
        z_TF = (x_TF - mean_F) / scale_F
        # What is left of a feature that is constant is rounding, which a probe would spend its time on.
        live_F = (z_TF.square().mean(dim=0) > 0.5).to(z_TF)
        weight_KF, bias_K = _probe(z_TF * live_F, y_T, num_classes, rule, seed)
        logits = ((x_NF[held_out] - mean_F) / scale_F * live_F) @ weight_KF.T + bias_K
        probe_NK[held_out] = torch.softmax(logits.double(), dim=1).numpy()
    return CrossFitted(knn_NK, probe_NK)


def _probe(x_NF: Tensor, labels_N: Tensor, num_classes: int, rule: ProbeRule, seed: int) -> tuple[Tensor, Tensor]:
    """W [K, F] and b [K]; the penalty by cross-validation on these rows alone."""
    # A class that has no row here (it is in no image at all) would have no bias: only those that occur are fitted.
    present_P, own_N, counts_P = torch.unique(labels_N, return_inverse=True, return_counts=True)
    weight_KF, bias_K = x_NF.new_zeros(num_classes, x_NF.shape[1]), x_NF.new_full((num_classes,), -torch.inf)
    if not bool(x_NF.any()):  # a collapsed representation: the classes' frequencies are all there is
        bias_K[present_P] = (counts_P / len(labels_N)).log()
        return weight_KF, bias_K
    space = row_space(x_NF)
    folds = stratified_folds(own_N.numpy(), rule.inner_folds, seed)
    best = len(rule.strengths) // 2
    if folds and len(rule.strengths) > 1:
        best, _ = cross_validate(space, own_N, len(present_P), rule.strengths, folds, rule.search_tolerance)
    strength = rule.strengths[best] * space.squared_length
    fit = fit_logistic_ladder(space, own_N, len(present_P), [strength], tolerance=rule.final_tolerance)
    weight_PF, bias_P = fit.coefficients(split=0, strength=0)
    weight_KF[present_P], bias_K[present_P] = weight_PF, bias_P
    return weight_KF, bias_K


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after on the same images, and the 95 % interval of after - before.

    Attributes:
        before, after: The figure.
        low, high: The interval.
        kind: "paired bootstrap"; "identical" where all predictions are bitwise the same, so that there is nothing to estimate.
        draws_D: after - before on each resample.
        least: What is added on both sides since no resample differs (the exact binomial bound); else 0.
    """

    before: float
    after: float
    low: float
    high: float
    kind: str
    draws_D: Floats
    least: float = 0.0

    @property
    def value(self) -> float:
        """after - before."""
        return self.after - self.before


def accuracy_change(before_NK: Floats, after_NK: Floats, labels_N: Labels, seed: int = 0) -> Change:
    """Accuracy after minus accuracy before; each resample takes the same images for both.

    Example:
        >>> truth = np.array([0, 1] * 50)
        >>> right, wrong = np.eye(2)[truth], np.eye(2)[1 - truth]
        >>> accuracy_change(right, wrong, truth).value
        -1.0
    """
    hits_BN = np.stack([p_NK.argmax(axis=1) == labels_N for p_NK in (before_NK, after_NK)]).astype(np.float64)
    difference_N = hits_BN[1] - hits_BN[0]
    n = len(labels_N)
    draws_D = np.concatenate([w_DN @ difference_N for w_DN in _resamples(n, seed)]) / n
    before, after = hits_BN.mean(axis=1).tolist()
    return _change(before, after, draws_D, n, np.array_equal(before_NK, after_NK))


def ece_change(before_NK: Floats, after_NK: Floats, labels_N: Labels, seed: int = 0) -> Change:
    """The same for the expected calibration error (`classification.ece`)."""
    n, draws, values = len(labels_N), [], []
    for p_NK in (before_NK, after_NK):
        bin_N, bins = confidence_bins(p_NK)
        gap_N = (p_NK.argmax(axis=1) == labels_N) - p_NK.max(axis=1)
        gaps_NB = sparse.csr_array((gap_N, (np.arange(n), bin_N)), shape=(n, bins))
        draws.append(np.concatenate([np.abs(w_DN @ gaps_NB).sum(axis=1) for w_DN in _resamples(n, seed)]) / n)
        values.append(float(np.abs(gaps_NB.sum(axis=0)).sum() / n))
    return _change(values[0], values[1], draws[1] - draws[0], n, np.array_equal(before_NK, after_NK))


def mean_change(changes: Sequence[Change]) -> Change:
    """The mean over data sets: images are resampled within each, the sets stay as they are.

    Give each set's change another seed, so that their resamples are independent.
    """
    if not changes:
        raise ValueError("a mean needs at least one change")
    draws_D = np.mean([change.draws_D for change in changes], axis=0)
    before, after = (float(np.mean(v)) for v in ([c.before for c in changes], [c.after for c in changes]))
    if all(change.kind == "identical" for change in changes):
        return Change(before, after, 0.0, 0.0, "identical", draws_D)
    least = float(np.mean([change.least for change in changes]))
    low, high = np.quantile(draws_D, [0.025, 0.975])
    return Change(before, after, float(low) - least, float(high) + least, "paired bootstrap", draws_D, least)


def _change(before: float, after: float, draws_D: Floats, n: int, identical: bool) -> Change:
    if identical:
        return Change(before, after, 0.0, 0.0, "identical", draws_D)
    least = 1 - 0.025 ** (1 / n) if draws_D.var() < 1e-18 else 0.0
    low, high = np.quantile(draws_D, [0.025, 0.975])
    return Change(
        before, after, max(float(low) - least, -1.0), min(float(high) + least, 1.0), "paired bootstrap", draws_D, least
    )


def _resamples(n: int, seed: int) -> Iterator[Floats]:
    """How often each of n images is in a resample, [draws, n], in portions; the same for the same n and seed."""
    rng = np.random.default_rng(seed)
    most = max(1, WEIGHTS_AT_ONCE // n)
    for start in range(0, DRAWS, most):
        size = min(most, DRAWS - start)
        yield np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(size)]).astype(np.float64)


def block_similarity(x0_NF: Tensor, x_NF: Tensor, seed: int = 0) -> tuple[float, float]:
    """Debiased linear CKA of the same images before and after, and its control with the images of one side shuffled (near 0)."""
    order_N = torch.from_numpy(np.random.default_rng(seed).permutation(len(x_NF)))
    found = []
    for other_NF in (x_NF, x_NF[order_N]):
        cka = StreamingCKA(x0_NF.shape[1], other_NF.shape[1])
        cka.update(x0_NF, other_NF)
        found.append(float(cka.debiased()))
    return found[0], found[1]


def rotated_picture(x0_NF: Tensor, x_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Both representations on the first two principal axes of the first, [N, 2] each, with the rotation between them removed.

    Each is centred and kept on its first `PICTURE_AXES` principal axes; the second is turned (and mirrored) onto the first by
    orthogonal Procrustes on the same images, so that what still differs is no rotation. Scales stay.
    """
    p0_NA, p_NA = _axes(x0_NF), _axes(x_NF)
    wide = max(p0_NA.shape[1], p_NA.shape[1], 2)
    p0_NA, p_NA = (F.pad(p, (0, wide - p.shape[1])) for p in (p0_NA, p_NA))
    rotation_AA = procrustes(p_NA, p0_NA, "svd").rotation
    assert rotation_AA is not None  # of this solver
    return p0_NA[:, :2], (p_NA @ rotation_AA)[:, :2]


def _axes(x_NF: Tensor) -> Tensor:
    """[N, A]: the rows on their principal axes, the largest variance first."""
    scores_NR = row_space(x_NF.double()).design_NR[:, :-1]  # ascending
    return scores_NR.flip(1)[:, :PICTURE_AXES]
