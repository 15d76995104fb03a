"""What is guessed of unlabelled images before a network is trained: label propagation and probe, pooled; and who is near whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Config
from keepsight.data.splits import stratified_folds
from keepsight.heads.graph import neighbour_graph, posteriors, propagate
from keepsight.heads.logistic import fit_logistic_ladder, row_space
from keepsight.heads.neighbours import smoothed_log
from keepsight.methods.frozen import Probe


class GuideConfig(Config):
    """Settings of `make_guide`.

    Attributes:
        k: Neighbours of each image in the graph.
        alpha: Share of a node's value that comes from its neighbours.
        tolerance: Relative residual at which propagation stops.
        folds: Folds of hidden labels on which the powers of the pool are fitted.
        propagation_power: Power of the propagated posteriors in the pool before any label is hidden, and the only one where a
            class has a single label.
        probe_power: The same of the probe's probabilities.
        width: Standard deviation of the first power's logarithm around that value; the second one's is twice as wide.
        rounds: Trainings. After each one but the last, labels are propagated again among images that are also compared by what
            was learnt.
        content_weight: Of that in the comparison (see `compared_again`).
        vote: Weight of the vote of the nearest images, with their last posteriors, beside the content network (see
            `ContentStyleHead`); 0 leaves it out.
    """

    k: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.98, ge=0, lt=1)
    tolerance: float = Field(default=1e-5, gt=0)
    folds: int = Field(default=5, ge=2)
    propagation_power: float = Field(default=1.3, gt=0)
    probe_power: float = Field(default=0.25, gt=0)
    width: float = Field(default=0.3, gt=0)
    rounds: int = Field(default=2, ge=1)
    content_weight: float = Field(default=0.7, ge=0)
    vote: float = Field(default=1.0, ge=0)


@dataclass(frozen=True, slots=True)
class Guide:
    """What is known of N images before training; the first L of them are labelled.

    Attributes:
        prior_K: Estimated share of each class.
        posteriors_NK: Class probabilities of each image (the label itself, where there is one), or [0, K] without.
        neighbours_Nk: Rows of the nearest images, or [0, 0] without.
        powers: Of label propagation and of the probe in the pool.
    """

    prior_K: Tensor
    posteriors_NK: Tensor
    neighbours_Nk: Tensor
    powers: tuple[float, float] = (0.0, 0.0)


def label_prior(labels_L: Tensor, num_classes: int) -> Tensor:
    """Shares [K] of the classes among the labels, with one more of each: (n_k + 1) / (L + K).

    Example:
        >>> label_prior(torch.tensor([0, 0, 1]), 2).tolist()
        [0.6000000238418579, 0.4000000059604645]
    """
    counts_K = torch.bincount(labels_L.cpu(), minlength=num_classes).float() + 1
    return counts_K / counts_K.sum()


def unguided(labels_L: Tensor, num_classes: int) -> Guide:
    """The prior of the labels and nothing else."""
    empty = torch.empty(0, 0, dtype=torch.int64)
    return Guide(label_prior(labels_L, num_classes), torch.empty(0, num_classes), empty)


@dataclass(frozen=True, slots=True)
class ProbeEvidence:
    """What the logistic probe says on tokens.

    Attributes:
        logs_NK: Smoothed log-probabilities of all images, from all labels.
        hidden_LK: Those of each labelled image, from the labels of the other folds.
        folds: The folds; empty where a class has a single label.
    """

    logs_NK: Tensor
    hidden_LK: Tensor
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def probe_evidence(z_ND: Tensor, labels_L: Tensor, num_classes: int, seed: int, config: GuideConfig) -> ProbeEvidence:
    """The probe of one strength, chosen by cross-validation on all labels, on all of them and on each fold's."""
    count = len(labels_L)
    folds = stratified_folds(labels_L.cpu().numpy(), config.folds, seed)
    # Not standardised: the token's axes have the scales that the reduction gave them on purpose.
    mean_D = z_ND[:count].mean(dim=0)
    space = row_space(z_ND[:count] - mean_D)
    probe = Probe()
    strength = probe.strength(space, labels_L, num_classes, seed) * space.squared_length
    whole = fit_logistic_ladder(space, labels_L, num_classes, [strength], tolerance=probe.config.final_tolerance)
    weight_KD, bias_K = whole.coefficients(split=0, strength=0)
    logs_NK = smoothed_log(torch.softmax(F.linear(z_ND - mean_D, weight_KD, bias_K), dim=1))
    hidden_LK = torch.empty(count, num_classes)
    if folds:
        weights_SN = torch.ones(len(folds), count).to(z_ND)
        for fold, (_, hidden) in enumerate(folds):
            weights_SN[fold, torch.from_numpy(hidden)] = 0
        tolerance = probe.config.search_tolerance
        parts = fit_logistic_ladder(space, labels_L, num_classes, [strength], weights_SN, tolerance)
        for fold, (_, hidden) in enumerate(folds):
            rows = torch.from_numpy(hidden)
            hidden_LK[rows] = smoothed_log(torch.softmax(parts.logits(fold, 0)[rows], dim=1)).cpu()
    return ProbeEvidence(logs_NK.cpu(), hidden_LK, folds)


def make_guide(unit_ND: Tensor, labels_L: Tensor, num_classes: int, probe: ProbeEvidence, config: GuideConfig) -> Guide:
    """Posteriors proportional to propagation^a probe^b, with powers a and b of the least log-loss on hidden labels.

    The prior is the posteriors' mean: estimated, so that it need not be even.

    Args:
        unit_ND: What images are compared by, rows of length one, labelled ones first (see `compared`, `compared_again`).
        labels_L: Class indices of the first L; every class has one.
        num_classes: K.
        probe: From `probe_evidence`, on the same images and labels.
        config: See `GuideConfig`.
    """
    graph = neighbour_graph(unit_ND, config.k)
    labels, count = labels_L.cpu().numpy(), len(labels_L)

    def spread(rows: NDArray[np.int64]) -> Tensor:
        y_NK = np.zeros((len(unit_ND), num_classes))
        y_NK[rows, labels[rows]] = 1.0
        found = posteriors(propagate(graph, y_NK, config.alpha, config.tolerance), y_NK.sum(axis=0))
        return smoothed_log(torch.from_numpy(found)).float()

    # With one label a class the probe is worse than nothing, and nothing can be hidden to find that out.
    powers = config.propagation_power, 0.0
    if probe.folds:
        start = config.propagation_power, config.probe_power
        hidden_LK = torch.empty(count, num_classes)
        for known, hidden in probe.folds:
            rows = torch.from_numpy(hidden)
            hidden_LK[rows] = spread(known)[rows]
        powers = pooled_powers(hidden_LK, probe.hidden_LK, labels_L.cpu(), start, config.width)
    logs_NK = powers[0] * spread(np.arange(count)) + powers[1] * probe.logs_NK
    posteriors_NK = torch.softmax(logs_NK, dim=1)
    posteriors_NK[:count] = F.one_hot(labels_L.cpu(), num_classes).float()
    return Guide(posteriors_NK.mean(dim=0), posteriors_NK, _neighbours(graph, config.k), powers)


def compared(z_ND: Tensor, views: Sequence[Tensor]) -> Tensor:
    """Rows of length one whose product is the mean of two cosines: of the plain tokens, and of the means over plain and views."""
    plain_ND = F.normalize(z_ND, dim=1)
    if not views:
        return plain_ND
    mean_ND = F.normalize(torch.stack([z_ND, *views]).mean(dim=0), dim=1)
    return torch.cat([plain_ND, mean_ND], dim=1) / math.sqrt(2)


def bank_of(z_ND: Tensor, views: Sequence[Tensor]) -> Tensor:
    """Rows [N, D] whose product with a plain token of length one is the mean of the cosines that `compared` takes.

    Example:
        >>> z, view, new = torch.randn(3, 4), torch.randn(3, 4), torch.randn(1, 4)
        >>> by_bank = F.normalize(new, dim=1) @ bank_of(z, [view]).T
        >>> torch.allclose(by_bank, compared(new, [new]) @ compared(z, [view]).T, atol=1e-6)
        True
    """
    plain_ND = F.normalize(z_ND, dim=1)
    if not views:
        return plain_ND
    return (plain_ND + F.normalize(torch.stack([z_ND, *views]).mean(dim=0), dim=1)) / 2


def compared_again(unit_ND: Tensor, content_NK: Tensor, weight: float) -> Tensor:
    """`compared` rows joined by what a trained network says of the images: the direction of its centred log-probabilities.

    The product of two rows is (cosine before + weight^2 cosine of the content) / (1 + weight^2).
    """
    logs_NK = content_NK.clamp(min=1e-6).log()
    direction_NK = F.normalize(logs_NK - logs_NK.mean(dim=1, keepdim=True), dim=1)
    return torch.cat([unit_ND, weight * direction_NK], dim=1) / math.sqrt(1 + weight**2)


def pooled_powers(
    first_LK: Tensor, second_LK: Tensor, labels_L: Tensor, start: tuple[float, float], width: float
) -> tuple[float, float]:
    """Powers a and b with the least log-loss of softmax(a first + b second) on these labels; both are log-probabilities.

    A normal prior on log a (standard deviation `width`) and log b (twice that) around `start` keeps few labels from asking for
    certainty.
    """
    first, second = first_LK.double(), second_LK.double()
    centre = np.log(start)

    def loss(logs: NDArray[np.float64]) -> float:
        a, b = np.exp(logs)
        fit = F.cross_entropy(a * first + b * second, labels_L, reduction="sum").item()
        return fit + 0.5 * float((((logs - centre) / (width, 2 * width)) ** 2).sum())

    found = minimize(loss, centre, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4})
    a, b = np.exp(found.x)
    return float(a), float(b)


def _neighbours(graph: sparse.csr_array, k: int) -> Tensor:
    """Rows [N, k] tied most strongly to each row; a row with fewer ties has its strongest repeated, one with none itself."""
    out = np.tile(np.arange(graph.shape[0])[:, None], (1, max(k, 1)))
    for row in range(graph.shape[0]):
        start, end = graph.indptr[row], graph.indptr[row + 1]
        if end > start:
            order = np.argsort(-graph.data[start:end], kind="stable")[:k]
            out[row] = np.resize(graph.indices[start:end][order], k)
    return torch.from_numpy(out).long()
