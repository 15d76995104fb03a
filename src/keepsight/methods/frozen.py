"""The two ordinary baselines on frozen features: k nearest neighbours, and the logistic probe.

Knows features and labels only. Whatever is chosen here (k, the penalty) is chosen on the labelled images alone.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Config, FeatureMethod, Token
from keepsight.data.multilabel import multilabel_folds
from keepsight.data.splits import stratified_folds
from keepsight.heads.independent import cross_validate_independent, fit_independent
from keepsight.heads.linear import LinearHead, standardisation
from keepsight.heads.logistic import RowSpace, cross_validate, fit_logistic_ladder, row_space
from keepsight.heads.neighbours import (
    SIMILARITIES_AT_ONCE,
    NeighbourHead,
    independent_vote_logits,
    unit_rows,
    vote_logits,
)


class KNNConfig(Config):
    """Settings of `KNN`.

    Attributes:
        ks: Candidate numbers of neighbours; those that exceed the number of labelled images less one are left out.
    """

    ks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 3, 5, 10, 20)


class KNN(FeatureMethod):
    """k nearest labelled images by cosine similarity of standardised features, weighted by its cube.

    k is the candidate with the best leave-one-out accuracy on the labelled images (log-loss decides ties, then the smaller k);
    with one label in every class an image left out has nobody to vote for it, and k is 1. In multi-label data the neighbours'
    targets are averaged class by class, and k is the candidate with the lowest log-loss.
    """

    multilabel = True

    def __init__(self, config: KNNConfig | None = None) -> None:
        self.config = config or KNNConfig()

    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> NeighbourHead:
        """Choose k and store the labelled images; the unlabelled ones and the seed are not used."""
        del unlabelled_MF, seed, token
        mean_F, scale_F = standardisation(x_NF)
        several = labels_N.ndim == 2
        votes_NK = (labels_N if several else F.one_hot(labels_N, num_classes)).to(x_NF)
        k = choose_k(unit_rows(x_NF, mean_F, scale_F), labels_N, votes_NK, self.config.ks)
        head = NeighbourHead(features=x_NF.shape[1], classes=num_classes, bank=len(x_NF), k=k, independent=int(several))
        head.store(x_NF, votes_NK, mean_F, scale_F)
        return head


def choose_k(unit_NF: Tensor, labels_N: Tensor, votes_NK: Tensor, ks: tuple[int, ...]) -> int:
    """The k of the best leave-one-out accuracy among unit rows, log-loss breaking ties; 1 where no class has two labels.

    With targets [N, K] in place of class indices, the log-loss decides.
    """
    ks = tuple(k for k in ks if k < len(unit_NF))
    if not ks or bool((votes_NK.sum(dim=0) < 2).all()):
        return 1
    chunk = max(1, SIMILARITIES_AT_ONCE // len(unit_NF))
    parts = []
    for first in range(0, len(unit_NF), chunk):
        similar = unit_NF[first : first + chunk] @ unit_NF.T
        similar[:, first:].fill_diagonal_(-torch.inf)
        parts.append(similar.topk(max(ks), dim=1))
    similar_Nk = torch.cat([p.values for p in parts])
    nearest_Nk = torch.cat([p.indices for p in parts])

    def score(k: int) -> tuple[float, float]:
        if labels_N.ndim == 2:
            logits_NK = independent_vote_logits(similar_Nk[:, :k], votes_NK[nearest_Nk[:, :k]])
            return -F.binary_cross_entropy_with_logits(logits_NK, votes_NK).item(), 0.0
        logits_NK = vote_logits(similar_Nk[:, :k], votes_NK[nearest_Nk[:, :k]])
        accuracy = (logits_NK.argmax(dim=1) == labels_N).float().mean().item()
        return accuracy, -F.cross_entropy(logits_NK, labels_N).item()

    return max(sorted(ks), key=score)


class ProbeConfig(Config):
    """Settings of `Probe`.

    Attributes:
        strengths: The ladder of L2 penalties, each in units of the features' mean squared length, so that they mean the same
            for any readout.
        folds: Folds of the cross-validation; fewer where the smallest class has fewer labels.
        default_strength: Used where a class has a single label, so that no cross-validation is possible.
        search_tolerance: Relative accuracy of the solutions that the cross-validation compares.
        final_tolerance: Relative accuracy of the solution that is kept.
    """

    strengths: tuple[Annotated[float, Field(gt=0)], ...] = tuple(10.0 ** (e / 2) for e in range(-13, -1))
    folds: int = Field(default=5, ge=2)
    default_strength: float = Field(default=1e-4, gt=0)
    search_tolerance: float = Field(default=0.1, gt=0)
    final_tolerance: float = Field(default=0.01, gt=0)


class Probe(FeatureMethod):
    """Multinomial logistic regression on standardised features, its penalty chosen by stratified cross-validation.

    The strength with the best cross-validated accuracy wins, log-loss breaking ties; then all labels are fitted with it. In
    multi-label data each class has its own two-class regression, and one strength for all of them is chosen by log-loss.
    """

    multilabel = True

    def __init__(self, config: ProbeConfig | None = None) -> None:
        self.config = config or ProbeConfig()

    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> LinearHead:
        """Choose the strength (the seed shuffles the folds) and fit all labels; unlabelled images are not used."""
        del unlabelled_MF, token
        mean_F, scale_F = standardisation(x_NF)
        space = row_space((x_NF - mean_F) / scale_F)
        strength, tolerance = self.strength(space, labels_N, num_classes, seed), self.config.final_tolerance
        head = LinearHead(features=x_NF.shape[1], classes=num_classes)
        if labels_N.ndim == 2:
            weight_KF, bias_K = fit_independent(space, labels_N, strength, tolerance)
        else:
            fit = fit_logistic_ladder(
                space, labels_N, num_classes, [strength * space.squared_length], tolerance=tolerance
            )
            weight_KF, bias_K = fit.coefficients(split=0, strength=0)
        head.load_state_dict({"mean_F": mean_F, "scale_F": scale_F, "weight_KF": weight_KF, "bias_K": bias_K})
        return head

    def strength(self, space: RowSpace, labels_N: Tensor, num_classes: int, seed: int) -> float:
        """The chosen strength in units of the rows' mean squared length."""
        config = self.config
        if labels_N.ndim == 2:
            folds = multilabel_folds(labels_N.cpu().numpy(), config.folds, seed)
            if not folds:
                return config.default_strength
            best, _ = cross_validate_independent(space, labels_N, config.strengths, folds, config.search_tolerance)
            return config.strengths[best]
        folds = stratified_folds(labels_N.cpu().numpy(), config.folds, seed)
        if not folds:
            return config.default_strength
        best, _ = cross_validate(space, labels_N, num_classes, config.strengths, folds, config.search_tolerance)
        return config.strengths[best]
