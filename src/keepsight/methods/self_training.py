"""Self-training: a linear classifier that learns from its own confident predictions. Knows features and labels only."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from keepsight.core import FeatureMethod, Token
from keepsight.data.splits import stratified_folds
from keepsight.heads.linear import LinearHead
from keepsight.heads.logistic import Folds, RowSpace, cross_validate, fit_logistic_ladder, row_space
from keepsight.heads.token import make_token
from keepsight.methods.tokens import TokenConfig


class SelfTrainingConfig(TokenConfig):
    """Settings of `SelfTraining`.

    Attributes:
        strengths: The ladder of L2 penalties, in units of the tokens' mean squared length; chosen on the labels alone.
        default_strength: Used where a class has a single label.
        least_strength: The fits to pseudo-labels use at least this.
        first_share: Share of the unlabelled images, the most confident of each class, that get a pseudo-label in the first round.
        rounds: Rounds over which that share grows to all of them.
        more_rounds: Rounds after that, at most.
        labelled_share: Least share of the total weight that the labelled images have.
        settled: It ends when all images are in and no larger share of pseudo-labels changes.
        folds: Folds of the cross-validation.
        search_images: Unlabelled images that the cross-validation of self-training against the labels alone looks at, at most.
        search_rounds: Rounds of self-training in it.
        tolerance: Relative accuracy of each fit.
    """

    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = tuple(
        10.0 ** (e / 2) for e in range(-11, 1)
    )
    default_strength: float = Field(default=1e-4, gt=0)
    least_strength: float = Field(default=1e-4, gt=0)
    first_share: float = Field(default=0.1, gt=0, le=1)
    rounds: int = Field(default=8, ge=1)
    more_rounds: int = Field(default=4, ge=0)
    labelled_share: float = Field(default=0.2, ge=0, lt=1)
    settled: float = Field(default=1e-3, ge=0, lt=1)
    folds: int = Field(default=3, ge=2)
    search_images: int = Field(default=1000, ge=0)
    search_rounds: int = Field(default=4, ge=1)
    tolerance: float = Field(default=0.1, gt=0)


class SelfTraining(FeatureMethod):
    """The logistic probe on the token, fitted again and again to the labels and to its own pseudo-labels.

    In each round predictions are brought to the labels' prior (`aligned`), and the most confident ones of every class are learnt,
    weighted by their confidence; their share grows. Where the labels alone do better on labels hidden fold by fold, their fit is
    kept as it is.
    """

    def __init__(self, config: SelfTrainingConfig | None = None) -> None:
        self.config = config or SelfTrainingConfig()

    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> LinearHead:
        """Choose the strength on the labels (the seed shuffles the folds) and iterate."""
        config = self.config
        token = token or make_token(torch.cat([x_NF, unlabelled_MF]), (), config.reduced, config.ridge)
        weight_KD, bias_K = self._solved(token.mean_over_views(), labels_N, num_classes, seed)
        head = LinearHead(features=x_NF.shape[1], classes=num_classes)
        state = {"mean_F": token.mean_F, "scale_F": token.scale_F, "bias_K": bias_K}
        # The head works on the standardised features: the axes are folded into its weights.
        head.load_state_dict(state | {"weight_KF": weight_KD @ token.axes_FD.T})
        return head

    def _solved(self, z_ND: Tensor, labels_L: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """W [K, D] and b [K] on the tokens [N, D], labelled ones first."""
        config, count = self.config, len(labels_L)
        strength, keep_probe = config.default_strength, False
        folds = stratified_folds(labels_L.cpu().numpy(), config.folds, seed)
        probe_space = row_space(z_ND[:count])
        if probe_space.design_NR.shape[1] == 1:  # labelled images that are all the same say nothing but the prior
            counts_K = torch.bincount(labels_L, minlength=num_classes).to(z_ND)
            return z_ND.new_zeros(num_classes, z_ND.shape[1]), counts_K.log()
        if folds:
            best, logits_LK = cross_validate(
                probe_space, labels_L, num_classes, config.strengths, folds, config.tolerance
            )
            strength = config.strengths[best]
            right = (logits_LK.argmax(dim=1) == labels_L).sum().item()
            keep_probe = len(z_ND) > count and right > self._hidden_right(
                z_ND, labels_L, num_classes, strength, folds, seed
            )
        if keep_probe or len(z_ND) == count:
            return self._fitted(probe_space, labels_L, torch.ones(count), num_classes, strength)
        known_N = torch.arange(len(z_ND)) < count
        labels_N = torch.cat([labels_L, torch.zeros(len(z_ND) - count, dtype=torch.int64)])
        return self._iterated(row_space(z_ND), z_ND, labels_N, known_N, num_classes, strength, config.rounds)

    def _hidden_right(
        self, z_ND: Tensor, labels_L: Tensor, num_classes: int, strength: float, folds: Folds, seed: int
    ) -> float:
        """How many labels, hidden fold by fold, self-training gets right."""
        count, right = len(labels_L), 0.0
        kept = np.random.default_rng((seed, 3)).permutation(len(z_ND) - count)[: self.config.search_images]
        z_ND = torch.cat([z_ND[:count], z_ND[count:][torch.from_numpy(kept)]])
        labels_N = torch.cat([labels_L, torch.zeros(len(kept), dtype=torch.int64)])
        space = row_space(z_ND)  # the folds share it: hidden images are unlabelled ones
        for training, hidden in folds:
            known_N = torch.zeros(len(z_ND), dtype=torch.bool)
            known_N[torch.from_numpy(training)] = True
            rounds = self.config.search_rounds
            weight_KD, bias_K = self._iterated(space, z_ND, labels_N, known_N, num_classes, strength, rounds)
            held = torch.from_numpy(hidden)
            right += ((z_ND[held] @ weight_KD.T + bias_K).argmax(dim=1) == labels_L[held]).sum().item()
        return right

    def _iterated(
        self,
        space: RowSpace,
        z_ND: Tensor,
        labels_N: Tensor,
        known_N: Tensor,
        num_classes: int,
        strength: float,
        rounds: int,
    ) -> tuple[Tensor, Tensor]:
        """Self-training; `labels_N` is read where `known_N` says so."""
        config, count, others = self.config, int(known_N.sum()), int((~known_N).sum())
        counts_K = torch.bincount(labels_N[known_N], minlength=num_classes) + 1.0
        prior_K = counts_K / counts_K.sum()
        weight_KD, bias_K = self._fitted(space, labels_N, known_N.float(), num_classes, strength)
        last_M = torch.full((others,), -1)
        for number in range(rounds + config.more_rounds):
            share = min(1.0, config.first_share + (1 - config.first_share) * number / max(rounds - 1, 1))
            p_MK = aligned(torch.softmax(z_ND[~known_N] @ weight_KD.T + bias_K, dim=1), prior_K)
            confidence_M, pseudo_M = p_MK.max(dim=1)
            weight_M = confidence_M * most_confident(confidence_M, pseudo_M, share * prior_K * others, share)
            least = config.labelled_share / (1 - config.labelled_share) * weight_M.sum().item() / count
            weight_N = torch.full((len(z_ND),), max(1.0, least))
            weight_N[~known_N] = weight_M
            both_N = labels_N.clone()
            both_N[~known_N] = pseudo_M
            weight_KD, bias_K = self._fitted(space, both_N, weight_N, num_classes, max(strength, config.least_strength))
            if share >= 1 and (pseudo_M != last_M).float().mean().item() <= config.settled:
                break
            last_M = pseudo_M
        return weight_KD, bias_K

    def _fitted(
        self, space: RowSpace, labels_N: Tensor, weight_N: Tensor, num_classes: int, strength: float
    ) -> tuple[Tensor, Tensor]:
        """W [K, D] and b [K] of weighted rows."""
        weights_SN, penalty = weight_N[None].to(space.design_NR), strength * space.squared_length
        fit = fit_logistic_ladder(space, labels_N, num_classes, [penalty], weights_SN, self.config.tolerance)
        return fit.coefficients(split=0, strength=0)


def aligned(p_NK: Tensor, prior_K: Tensor, iterations: int = 20) -> Tensor:
    """Probabilities [N, K] reweighted by class, so that their mean comes to the prior.

    Example:
        >>> aligned(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0.5, 0.5])).mean(dim=0).round(decimals=2).tolist()
        [0.5, 0.5]
    """
    log_NK = p_NK.double().clamp(min=1e-30).log()
    shift_K = torch.zeros_like(prior_K, dtype=torch.float64)
    for _ in range(iterations):
        mean_K = torch.softmax(log_NK + shift_K, dim=1).mean(dim=0)
        shift_K = shift_K + prior_K.double().log() - mean_K.clamp(min=1e-30).log()
    return torch.softmax(log_NK + shift_K, dim=1).to(p_NK)


def most_confident(confidence_M: Tensor, pseudo_M: Tensor, wanted_K: Tensor, share: float) -> Tensor:
    """1 for the `wanted_K` most confident of each class (all of them where share is 1), else 0; [M], as floats."""
    if share >= 1:
        return torch.ones_like(confidence_M)
    chosen_M = torch.zeros_like(confidence_M)
    for k, wanted in enumerate(wanted_K.tolist()):
        of_class = (pseudo_M == k).nonzero()[:, 0]
        best = confidence_M[of_class].argsort(descending=True, stable=True)
        chosen_M[of_class[best[: max(1, round(wanted))]]] = 1
    return chosen_M
