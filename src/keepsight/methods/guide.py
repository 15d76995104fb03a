"""What is guessed of unlabelled images before a network is trained: label propagation and probe, pooled; and who is near whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """

    k: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.98, ge=0, lt=1)
    tolerance: float = Field(default=1e-5, gt=0)
    folds: int = Field(default=5, ge=2)
    propagation_power: float = Field(default=1.3, gt=0)
    probe_power: float = Field(default=0.25, gt=0)
    width: float = Field(default=0.3, gt=0)


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


def make_guide(
    z_ND: Tensor, views: Sequence[Tensor], labels_L: Tensor, num_classes: int, seed: int, config: GuideConfig
) -> Guide:
    """Posteriors proportional to propagation^a probe^b, with powers a and b of the least log-loss on hidden labels.

    Images are compared as they are and by the mean of their views, with equal weight. The prior is the posteriors' mean:
    estimated, so that it need not be even.

    Args:
        z_ND: Tokens of all images, labelled ones first.
        views: Tokens [N, D] of augmented views of them; may be empty.
        labels_L: Class indices of the first L; every class has one.
        num_classes: K.
        seed: Shuffles the folds.
        config: See `GuideConfig`.
    """
    unit_ND = compared(z_ND, views)
    graph = neighbour_graph(unit_ND, config.k)
    labels, count = labels_L.cpu().numpy(), len(labels_L)

    def spread(rows: NDArray[np.int64]) -> Tensor:
        y_NK = np.zeros((len(z_ND), num_classes))
        y_NK[rows, labels[rows]] = 1.0
        found = posteriors(propagate(graph, y_NK, config.alpha, config.tolerance), y_NK.sum(axis=0))
        return smoothed_log(torch.from_numpy(found)).float()

    def probed(rows: NDArray[np.int64]) -> Callable[[Tensor], Tensor]:
        z_LD = z_ND[torch.from_numpy(rows)]
        head = Probe().fit(z_LD, labels_L[torch.from_numpy(rows)], z_LD[:0], num_classes, seed)

        def logs(z: Tensor) -> Tensor:
            with torch.no_grad():
                return smoothed_log(torch.softmax(head(z), dim=1))

        return logs

    powers = config.propagation_power, config.probe_power
    folds = stratified_folds(labels, config.folds, seed)
    if folds:
        hidden_LK = torch.empty(2, count, num_classes)
        for known, hidden in folds:
            rows = torch.from_numpy(hidden)
            hidden_LK[0, rows], hidden_LK[1, rows] = spread(known)[rows], probed(known)(z_ND[rows])
        powers = pooled_powers(hidden_LK[0], hidden_LK[1], labels_L.cpu(), powers, config.width)
    everything = np.arange(count)
    logs_NK = powers[0] * spread(everything) + powers[1] * probed(everything)(z_ND).cpu()
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
