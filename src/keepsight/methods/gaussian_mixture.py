"""A semi-supervised Gaussian mixture on few axes, by expectation maximisation. Knows features and labels only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import FeatureMethod, Token
from keepsight.data.splits import stratified_folds
from keepsight.heads.gaussian import GaussianHead, log_densities
from keepsight.heads.reduction import principal_axes
from keepsight.heads.token import make_token
from keepsight.methods.tokens import TokenConfig

Share = Annotated[float, Field(ge=0, le=1)]


class GaussianMixtureConfig(TokenConfig):
    """Settings of `GaussianMixture`.

    Attributes:
        axes: Principal axes of the token on which the mixture is fitted.
        shrinkage: Share of a multiple of the identity in every covariance.
        candidates: (own, weight) to choose among by cross-validation: `own` is the largest share of a class's own covariance, the
            rest being the one that all share; `weight` is how much an unlabelled image counts (EM-lambda, Nigam et al. 2000).
        default: The candidate where a class has a single label.
        folds: Folds of the cross-validation.
        search_images: Unlabelled images that the cross-validation looks at, at most.
        search_iterations: Iterations of each fit in the cross-validation, at most.
        iterations: Iterations of the fit that is kept, at most.
        tolerance: The fit stops when no responsibility changes by more.
    """

    axes: int = Field(default=64, ge=1)
    shrinkage: float = Field(default=0.1, gt=0, le=1)
    candidates: Annotated[tuple[tuple[Share, Share], ...], Field(min_length=1)] = (
        (0.5, 1.0),
        (0.5, 0.1),
        (0.0, 0.1),
        (0.0, 0.01),
        (0.0, 0.0),
    )
    default: tuple[Share, Share] = (0.5, 1.0)
    folds: int = Field(default=3, ge=2)
    search_images: int = Field(default=1000, ge=0)
    search_iterations: int = Field(default=12, ge=1)
    iterations: int = Field(default=40, ge=1)
    tolerance: float = Field(default=1e-3, gt=0)


@dataclass(frozen=True, slots=True)
class Mixture:
    """One normal distribution a class: what `log_densities` takes, in float64."""

    mean_KD: Tensor
    whiten_CDD: Tensor
    constant_K: Tensor

    def logits(self, z_ND: Tensor) -> Tensor:
        """log prior + log density [N, K], up to a constant."""
        return log_densities(z_ND, self.mean_KD, self.whiten_CDD, self.constant_K)


class GaussianMixture(FeatureMethod):
    """Each class a normal distribution of the token, fitted to all images: labelled ones belong to their class, the others by
    expectation maximisation (as in arXiv 2506.03582).

    The covariance of class k is a mixture of its own and the one all share, its own with share own N_k / (N_k + D) where N_k is
    what belongs to it; then it is shrunk. The prior is that of the labels' counts plus one: one that is estimated along with the
    rest lets large classes eat small ones.
    """

    def __init__(self, config: GaussianMixtureConfig | None = None) -> None:
        self.config = config or GaussianMixtureConfig()

    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> GaussianHead:
        """Choose the candidate and fit; the seed draws folds and what the search looks at."""
        config = self.config
        token = token or make_token(torch.cat([x_NF, unlabelled_MF]), (), config.reduced, config.ridge)
        z_ND = token.mean_over_views()
        try:
            _, axes_DA = principal_axes(z_ND - z_ND.mean(dim=0), config.axes)
        except ValueError:
            axes_DA = torch.eye(z_ND.shape[1])[:, :1].to(z_ND)
        z_NA = (z_ND @ axes_DA).double()
        own, weight = self._choose(z_NA, labels_N, num_classes, seed)
        mixture = self._fit(z_NA, labels_N, num_classes, own, weight, config.iterations)
        head = GaussianHead(x_NF.shape[1], axes_DA.shape[1], num_classes, len(mixture.whiten_CDD))
        head.reduction.take(dataclasses.replace(token, axes_FD=token.axes_FD @ axes_DA))
        head.mean_KD.copy_(mixture.mean_KD)
        head.whiten_CDD.copy_(mixture.whiten_CDD)
        head.constant_K.copy_(mixture.constant_K)
        return head

    def _choose(self, z_NA: Tensor, labels_L: Tensor, num_classes: int, seed: int) -> tuple[float, float]:
        """The candidate with the best accuracy on labels hidden fold by fold, log-loss breaking ties."""
        config, count = self.config, len(labels_L)
        folds = stratified_folds(labels_L.cpu().numpy(), config.folds, seed)
        if not folds or len(config.candidates) == 1:
            return config.default if not folds else config.candidates[0]
        others = len(z_NA) - count
        kept = np.random.default_rng((seed, 3)).permutation(others)[: config.search_images]
        unlabelled = z_NA[count:][torch.from_numpy(kept)]
        # Fewer images count more each, so that a weight means the same here and in the fit that is kept.
        factor = others / max(len(kept), 1)

        def score(candidate: tuple[float, float]) -> tuple[float, float]:
            logits_LK = z_NA.new_zeros(count, num_classes)
            for training, hidden in folds:
                rows, held = torch.from_numpy(training), torch.from_numpy(hidden)
                z = torch.cat([z_NA[rows], z_NA[held], unlabelled])  # hidden ones are unlabelled images
                own, weight = candidate
                mixture = self._fit(z, labels_L[rows], num_classes, own, weight * factor, config.search_iterations)
                logits_LK[held] = mixture.logits(z_NA[held])
            accuracy = (logits_LK.argmax(dim=1) == labels_L).double().mean().item()
            return accuracy, -F.cross_entropy(logits_LK, labels_L).item()

        return max(config.candidates, key=score)

    def _fit(
        self, z_NA: Tensor, labels_L: Tensor, num_classes: int, own: float, weight: float, iterations: int
    ) -> Mixture:
        """Expectation maximisation; the first step puts one shared covariance, that of all images, around the labels' means."""
        count = len(labels_L)
        known_LK = F.one_hot(labels_L, num_classes).to(z_NA)
        prior_K = (known_LK.sum(dim=0) + 1) / (count + num_classes)
        total_AA = z_NA.T @ z_NA / len(z_NA) - torch.outer(z_NA.mean(dim=0), z_NA.mean(dim=0))
        spread = max(total_AA.diagonal().mean().item(), 1e-12)
        means_KA = (known_LK.T @ z_NA[:count]) / known_LK.sum(dim=0)[:, None]
        mixture = self._mixture(means_KA, total_AA[None], prior_K, spread)
        shares_NK = torch.cat([known_LK, torch.zeros_like(known_LK[:1]).expand(len(z_NA) - count, -1)])
        for _ in range(iterations):
            new_NK = torch.cat([known_LK, torch.softmax(mixture.logits(z_NA[count:]), dim=1)])
            change = (new_NK - shares_NK).abs().max().item()
            shares_NK = new_NK
            mixture = self._maximised(z_NA, shares_NK, count, weight, own, prior_K, spread)
            if change < self.config.tolerance or weight == 0 or len(z_NA) == count:
                break
        return mixture

    def _maximised(
        self, z_NA: Tensor, shares_NK: Tensor, count: int, weight: float, own: float, prior_K: Tensor, spread: float
    ) -> Mixture:
        """Means and covariances of weighted responsibilities [N, K]."""
        weights_N = torch.full_like(shares_NK[:, 0], weight)
        weights_N[:count] = 1
        weighted_NK = shares_NK * weights_N[:, None]
        mass_K = weighted_NK.sum(dim=0)  # at least one: every class has a label
        means_KA = weighted_NK.T @ z_NA / mass_K[:, None]
        second_AA = (z_NA * weights_N[:, None]).T @ z_NA
        shared_AA = (second_AA - (means_KA * mass_K[:, None]).T @ means_KA) / mass_K.sum()
        if own == 0:
            return self._mixture(means_KA, shared_AA[None], prior_K, spread)
        own_K = own * mass_K / (mass_K + z_NA.shape[1])
        covariances = []
        for k in range(len(mass_K)):
            apart_NA = (z_NA - means_KA[k]) * weighted_NK[:, k : k + 1].sqrt()
            covariances.append(own_K[k] * (apart_NA.T @ apart_NA) / mass_K[k] + (1 - own_K[k]) * shared_AA)
        return self._mixture(means_KA, torch.stack(covariances), prior_K, spread)

    def _mixture(self, means_KA: Tensor, covariance_CAA: Tensor, prior_K: Tensor, spread: float) -> Mixture:
        """Shrunk towards `spread`, the mean variance of all images: positive definite also where a class has one image."""
        shrinkage = self.config.shrinkage
        identity_AA = torch.eye(means_KA.shape[1]).to(means_KA)
        shrunk_CAA = (1 - shrinkage) * covariance_CAA + shrinkage * spread * identity_AA
        lower_CAA = torch.linalg.cholesky(shrunk_CAA)
        whiten_CAA = torch.linalg.solve_triangular(lower_CAA, identity_AA.expand_as(lower_CAA), upper=False)
        log_volume_C = lower_CAA.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        return Mixture(means_KA, whiten_CAA, prior_K.log() - log_volume_C)
