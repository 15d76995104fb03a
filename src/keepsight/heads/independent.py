"""Independent logistic regressions, one a class, on the ladder of `heads.logistic`. Knows tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.heads.logistic import Folds, RowSpace, fit_logistic_ladder


def fit_independent(space: RowSpace, targets_NK: Tensor, strength: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """W [K, F] and b [K]: sigmoid(w_k x + b_k) is the probability of class k.

    Each class is a two-class problem of `fit_logistic_ladder`. Where all images have a class or none does, w is zero and b the
    logit of (n + 1/2) / (N + 1), with n images that have it.

    Args:
        space: `row_space` of the features.
        targets_NK: 1 for the classes that an image has, else 0.
        strength: The L2 penalty, in units of `space.squared_length`.
        tolerance: As in `fit_logistic_ladder`.
    """
    features = space.back_RF.shape[1]
    weight_KF = space.back_RF.new_zeros(targets_NK.shape[1], features)
    bias_K = _prior_logits(targets_NK).to(weight_KF)
    for k in _both(targets_NK):
        labels_N = targets_NK[:, k].long()
        fit = fit_logistic_ladder(space, labels_N, 2, [strength * space.squared_length], tolerance=tolerance)
        weight_2F, bias_2 = fit.coefficients(split=0, strength=0)
        weight_KF[k], bias_K[k] = weight_2F[1] - weight_2F[0], bias_2[1] - bias_2[0]
    return weight_KF, bias_K


def cross_validate_independent(
    space: RowSpace, targets_NK: Tensor, strengths: Sequence[float], folds: Folds, tolerance: float
) -> tuple[int, float]:
    """The index of the strength with the lowest log-loss on held-out rows, mean over rows and classes, and that loss (nats).

    One strength serves all classes: a rare class alone has too few images to choose by.

    Args:
        space: `row_space` of the features.
        targets_NK: 1 for the classes that an image has, else 0.
        strengths: Candidate penalties, in units of `space.squared_length`.
        folds: (training rows, held-out rows) of each fit; every row is held out once.
        tolerance: As in `fit_logistic_ladder`.
    """
    logits_LNK = space.design_NR.new_zeros(len(strengths), *targets_NK.shape)
    absolute = [s * space.squared_length for s in strengths]
    trainings = [torch.from_numpy(training) for training, _ in folds]
    for training, (_, held_out) in zip(trainings, folds, strict=True):
        logits_LNK[:, torch.from_numpy(held_out)] = _prior_logits(targets_NK[training]).to(logits_LNK)
    for k in range(targets_NK.shape[1]):
        # A fold whose training side lacks the class, or has it throughout, keeps the prior.
        usable = [f for f, training in enumerate(trainings) if k in _both(targets_NK[training])]
        if not usable:
            continue
        weights_SN = space.design_NR.new_zeros(len(usable), len(targets_NK))
        for weights_N, f in zip(weights_SN, usable, strict=True):
            weights_N[trainings[f]] = 1
        fit = fit_logistic_ladder(space, targets_NK[:, k].long(), 2, absolute, weights_SN, tolerance)
        for split, f in enumerate(usable):
            rows = torch.from_numpy(folds[f][1])
            for index in range(len(strengths)):
                logits_N2 = fit.logits(split, index)[rows]
                logits_LNK[index, rows, k] = logits_N2[:, 1] - logits_N2[:, 0]
    losses = [F.binary_cross_entropy_with_logits(logits, targets_NK.to(logits)).item() for logits in logits_LNK]
    best = min(range(len(losses)), key=lambda index: losses[index])
    return best, losses[best]


def _both(targets_NK: Tensor) -> list[int]:
    """Classes that some rows have and some have not."""
    found: list[int] = ((targets_NK == 1).any(dim=0) & (targets_NK != 1).any(dim=0)).nonzero()[:, 0].tolist()
    return found


def _prior_logits(targets_NK: Tensor) -> Tensor:
    has_K = targets_NK.double().sum(dim=0)
    return torch.log((has_K + 0.5) / (len(targets_NK) - has_K + 0.5))
