"""Logistic regression for many strengths and folds at once.

Knows tensors only: no head, no backbone, no data set, and not which strengths are worth trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]

LOGITS_AT_ONCE = 250_000
"""Entries of the largest logit tensor; a longer ladder is solved in groups, each started from the one before."""

ROUNDING = 4
"""Multiple of the type's epsilon, relative to the gradient at W = 0, below which a gradient is rounding noise."""

HISTORY = 5
"""Step and gradient pairs that L-BFGS keeps."""


@dataclass(frozen=True, slots=True)
class RowSpace:
    """Rows in the singular basis of their row space: all that penalised problems on these rows need of them.

    Attributes:
        design_NR: U S of the centred rows = U S V^T, and a last column of ones for the unpenalised bias.
        back_RF: V^T, from that basis to the features.
        mean_F: What was subtracted from the rows.
        squared_length: Mean squared length of the centred rows: in units of it, a strength means the same for any number
            and scale of features.
    """

    design_NR: Tensor
    back_RF: Tensor
    mean_F: Tensor
    squared_length: float


def row_space(x_NF: Tensor) -> RowSpace:
    """The row space of features [N, F]; its dimension is at most min(N, F), null directions are left out.

    Through the smaller Gram matrix in float64: penalised solutions need no more accuracy in the small singular values than
    eps * largest^2, and it takes a third of the time of an SVD.

    Example:
        >>> row_space(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).squared_length
        1.0
    """
    mean_F = x_NF.mean(dim=0)
    x = (x_NF - mean_F).double()
    wide = x.shape[0] < x.shape[1]
    values_R, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep_R = values_R > values_R[-1].clamp(min=1e-30) * 1e-12
    values_R, vectors = values_R[keep_R], vectors[:, keep_R]
    if wide:
        scale_R = values_R.sqrt()
        basis_NR, back_RF = vectors * scale_R, (vectors / scale_R).T @ x
    else:
        basis_NR, back_RF = x @ vectors, vectors.T
    design_NR = torch.cat([basis_NR, basis_NR.new_ones(len(basis_NR), 1)], dim=1)
    # Without any spread (one row, or all alike) the unit is arbitrary, but a strength must stay positive.
    length = basis_NR.square().sum(dim=1).mean().item() or 1.0
    return RowSpace(design_NR.to(x_NF), back_RF.to(x_NF), mean_F, length)


@dataclass(frozen=True, slots=True)
class LadderFit:
    """Solutions of S x L problems: S weightings of the same rows (folds) by L strengths.

    Attributes:
        error_SL: Norm of the gradient left over, divided by lam ||W||: a bound on the relative error of W.
        iterations: Gradient evaluations.
        theta_SLKR: Coefficients in the singular basis, the bias last.
        space: The rows.
    """

    error_SL: Tensor
    iterations: int
    theta_SLKR: Tensor
    space: RowSpace

    def logits(self, split: int, strength: int) -> Tensor:
        """Logits [N, K] of *all* rows, those of weight zero included, under one solution."""
        return self.space.design_NR @ self.theta_SLKR[split, strength].T

    def coefficients(self, split: int, strength: int) -> tuple[Tensor, Tensor]:
        """W [K, F] and b [K] of one solution; b sums to zero."""
        theta_KR = self.theta_SLKR[split, strength]
        weight_KF = theta_KR[:, :-1] @ self.space.back_RF
        bias_K = theta_KR[:, -1] - weight_KF @ self.space.mean_F
        return weight_KF, bias_K - bias_K.mean()


def fit_logistic_ladder(
    space: RowSpace,
    labels_N: Tensor,
    num_classes: int,
    strengths: Sequence[float],
    weights_SN: Tensor | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> LadderFit:
    """Multinomial logistic regression for all strengths and all row weightings at once.

    For each weighting w and strength lam it minimises

        sum_n w_n CE(W x_n + b, y_n) / sum_n w_n  +  lam / 2 ||W||^2,

    with b unpenalised; scikit-learn's C is 1 / (lam sum_n w_n). Rows of weight zero take part in the matrix products only, so
    all folds of a cross-validation share them. Two exact changes of variable make it fast: W is restricted to the row space
    (100 labels x 1,536 features is a 99-dimensional problem), and there to the singular basis, where the curvature at W = 0
    is diagonal and preconditions L-BFGS. Step lengths come from a one-dimensional Newton search on the stored logits.

    Args:
        space: `row_space` of features [N, F], float32 or float64; the solution has the same type.
        labels_N: Class indices [N].
        num_classes: K.
        strengths: L penalties lam > 0, in any order.
        weights_SN: Row weights [S, N] >= 0, one row a fold; all ones by default (S = 1).
        tolerance: A problem is done when ||gradient|| <= tolerance * lam ||W||, by strong convexity a bound on the relative
            error of W (an upper bound: probabilities are usually ten to a hundred times closer).
        max_iterations: At most this many gradient evaluations for each group of strengths.

    Raises:
        ValueError: A strength is not positive, or a class has no row of positive weight in some weighting (its bias would
            run to minus infinity).

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> fit = fit_logistic_ladder(row_space(x), torch.tensor([0, 1]), 2, strengths=[0.1, 1.0])
        >>> fit.logits(split=0, strength=1).argmax(dim=-1).tolist()
        [0, 1]
    """
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be positive, got {list(strengths)}")
    design_NR = space.design_NR
    w_SN = torch.ones(1, len(design_NR)).to(design_NR) if weights_SN is None else weights_SN.to(design_NR)
    w_SN = w_SN / w_SN.sum(dim=1, keepdim=True)
    target_NK = F.one_hot(labels_N, num_classes).to(design_NR)
    if bool((w_SN @ target_NK <= 0).any()):
        raise ValueError("every class needs a row of positive weight in every weighting")

    spread_R = design_NR.square().mean(dim=0)
    order = sorted(range(len(strengths)), key=lambda i: -strengths[i])
    s, n = w_SN.shape
    group = max(1, LOGITS_AT_ONCE // (s * n * num_classes))
    theta_SLKR = design_NR.new_empty(s, len(strengths), num_classes, design_NR.shape[1])
    error_SL = design_NR.new_empty(s, len(strengths))
    start_SKR, iterations = None, 0
    for i in range(0, len(order), group):
        ladder = order[i : i + group]
        lam_P = design_NR.new_tensor([strengths[j] for j in ladder]).repeat(s)
        start_PKR = None if start_SKR is None else start_SKR.repeat_interleave(len(ladder), dim=0)
        problem = _Problems(design_NR, spread_R, target_NK, w_SN.repeat_interleave(len(ladder), dim=0), lam_P)
        solution_PKR, left_P, used = _minimise(problem, start_PKR, tolerance, max_iterations)
        theta_SLKR[:, ladder] = solution_PKR.reshape(s, len(ladder), num_classes, -1)
        error_SL[:, ladder] = left_P.reshape(s, len(ladder))
        start_SKR, iterations = theta_SLKR[:, ladder[-1]], iterations + used

    return LadderFit(error_SL, iterations, theta_SLKR, space)


def cross_validate(
    space: RowSpace, labels_N: Tensor, num_classes: int, strengths: Sequence[float], folds: Folds, tolerance: float
) -> tuple[int, Tensor]:
    """The index of the best strength, and its logits [N, K], each row's from the fit that did not see it.

    Best is the accuracy on held-out rows, the log-loss deciding ties.

    Args:
        space: `row_space` of the features.
        labels_N: Class indices.
        num_classes: K.
        strengths: Candidate penalties, in units of `space.squared_length`.
        folds: (training rows, held-out rows) of each fit; every row is held out once, every training side has every class.
        tolerance: As in `fit_logistic_ladder`.
    """
    weights_SN = space.design_NR.new_zeros(len(folds), len(labels_N))
    for weights_N, (training, _) in zip(weights_SN, folds, strict=True):
        weights_N[torch.from_numpy(training)] = 1
    absolute = [s * space.squared_length for s in strengths]
    fit = fit_logistic_ladder(space, labels_N, num_classes, absolute, weights_SN, tolerance)
    scored = []
    for index in range(len(strengths)):
        logits_NK = space.design_NR.new_zeros(len(labels_N), num_classes)
        for fold, (_, held_out) in enumerate(folds):
            rows = torch.from_numpy(held_out)
            logits_NK[rows] = fit.logits(fold, index)[rows]
        accuracy = (logits_NK.argmax(dim=1) == labels_N).double().mean().item()
        scored.append((accuracy, -F.cross_entropy(logits_NK, labels_N).item(), index, logits_NK))
    _, _, best, logits_NK = max(scored, key=lambda s: s[:2])
    return best, logits_NK


@dataclass(frozen=True, slots=True)
class _Problems:
    """P problems that share a design: weights [P, N] (each summing to one) and penalties [P]."""

    design_NR: Tensor
    spread_R: Tensor
    target_NK: Tensor
    weights_PN: Tensor
    lam_P: Tensor

    def only(self, keep: Tensor) -> _Problems:
        return _Problems(self.design_NR, self.spread_R, self.target_NK, self.weights_PN[keep], self.lam_P[keep])

    def logits(self, theta_PKR: Tensor) -> Tensor:
        """[P, K, N]."""
        p, k, r = theta_PKR.shape
        return (theta_PKR.reshape(p * k, r) @ self.design_NR.T).reshape(p, k, -1)

    def gradient(self, theta_PKR: Tensor, logits_PKN: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient [P, K, R], and the diagonal [P, 1, R] that stands for the Hessian in the singular basis.

        The diagonal takes every row at the problem's average p (1 - p): exact at W = 0, and later of the right size
        against lam, which is what it is for (with p (1 - p) left at its first value a weak penalty takes thrice as long).
        """
        p, k, n = logits_PKN.shape
        chance_PKN = torch.softmax(logits_PKN, dim=1)
        spread_P = (1 - chance_PKN.square().sum(dim=1)).mul_(self.weights_PN).sum(dim=1).clamp(min=1e-9) / k
        residual_PKN = chance_PKN.sub_(self.target_NK.T).mul_(self.weights_PN[:, None])
        gradient_PKR = (residual_PKN.reshape(p * k, n) @ self.design_NR).reshape(p, k, -1)
        gradient_PKR[..., :-1] += self.lam_P[:, None, None] * theta_PKR[..., :-1]
        diagonal_PR = spread_P[:, None] * self.spread_R
        diagonal_PR[:, :-1] += self.lam_P[:, None]
        return gradient_PKR, diagonal_PR[:, None]


def _minimise(
    problems: _Problems, start_PKR: Tensor | None, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, int]:
    """Preconditioned L-BFGS on all problems at once; finished ones leave the batch. (solution, error, iterations)."""
    p, r, k = len(problems.lam_P), problems.design_NR.shape[1], problems.target_NK.shape[1]
    theta = problems.design_NR.new_zeros(p, k, r)
    # W = 0 with the classes' own frequencies as biases: the solution of an infinite penalty.
    theta[..., -1] = (problems.weights_PN @ problems.target_NK).log()
    logits = theta[..., -1:].expand(p, k, len(problems.target_NK))
    noise = ROUNDING * torch.finfo(theta.dtype).eps * problems.gradient(theta, logits)[0].flatten(1).norm(dim=1)
    if start_PKR is not None:
        theta = start_PKR.clone()
    logits = problems.logits(theta)
    gradient, curvature = problems.gradient(theta, logits)

    solution, left = theta.clone(), torch.zeros_like(problems.lam_P)
    active = torch.arange(p, device=theta.device)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    iteration = 1
    while True:
        size = problems.lam_P * theta[..., :-1].flatten(1).norm(dim=1)
        norm = gradient.flatten(1).norm(dim=1)
        relative = norm / size.clamp(min=torch.finfo(theta.dtype).tiny)
        solution[active], left[active] = theta, relative
        going = (relative > tolerance) & (norm > noise[active])
        if iteration >= max_iterations or not bool(going.any()):
            return solution, left, iteration
        # Shrinking the batch copies everything, so it waits until a quarter of the problems is done.
        if going.float().mean() < 0.75:
            active, problems, curvature = active[going], problems.only(going), curvature[going]
            theta, logits, gradient = theta[going], logits[going], gradient[going]
            steps, changes = [s[going] for s in steps], [c[going] for c in changes]
        direction = _lbfgs_direction(gradient, curvature, steps, changes)
        direction_logits = problems.logits(direction)
        length = _line_search(problems, theta, logits, gradient, direction, direction_logits)
        step = direction.mul_(length[:, None, None])
        theta = theta + step
        # In float32 the running sum drifts, so the logits are made anew now and then.
        logits = problems.logits(theta) if iteration % 20 == 0 else logits + direction_logits * length[:, None, None]
        new_gradient, curvature = problems.gradient(theta, logits)
        steps, changes = [*steps[1 - HISTORY :], step], [*changes[1 - HISTORY :], new_gradient - gradient]
        gradient = new_gradient
        iteration += 1


def _lbfgs_direction(gradient: Tensor, curvature: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """The two-loop recursion with the diagonal curvature, rescaled by the last pair, as the initial Hessian."""
    q = -gradient
    inner = [_dot(s, y) for s, y in zip(steps, changes, strict=True)]
    # A pair without curvature (a problem that has converged while others run) is left out: its coefficients become zero.
    inverse = [torch.where(i > 0, 1 / i.clamp(min=1e-30), 0.0) for i in inner]
    alphas: list[Tensor] = []
    for s, y, rho in zip(reversed(steps), reversed(changes), reversed(inverse), strict=True):
        alpha = rho * _dot(s, q)
        q = torch.addcmul(q, alpha[:, None, None], y, value=-1)
        alphas.append(alpha)
    q = q / curvature
    if steps:
        size = _dot(changes[-1], changes[-1] / curvature)
        scale = torch.where((inner[-1] > 0) & (size > 0), inner[-1] / size.clamp(min=1e-30), 1.0)
        q = q * scale[:, None, None]
    for s, y, rho, alpha in zip(steps, changes, inverse, reversed(alphas), strict=True):
        q = torch.addcmul(q, (alpha - rho * _dot(y, q))[:, None, None], s)
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products [P] of two [P, K, R]."""
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])[:, 0, 0]


def _line_search(
    problems: _Problems, theta: Tensor, logits: Tensor, gradient: Tensor, direction: Tensor, direction_logits: Tensor
) -> Tensor:
    """Step lengths [P]: safeguarded Newton on the convex phi(t) = f(theta + t direction), using the logits only.

    Stops at |phi'(t)| <= |phi'(0)| / 4, else at the longest step known to go downhill all the way.
    """
    weights, lam = problems.weights_PN, problems.lam_P
    dd = lam * _dot(direction[..., :-1], direction[..., :-1])
    linear = lam * _dot(theta[..., :-1], direction[..., :-1])
    linear = linear - (weights * torch.einsum("pkn,nk->pn", direction_logits, problems.target_NK)).sum(dim=1)
    small = _dot(gradient, direction).abs() / 4

    length = torch.ones_like(lam)
    low, high = torch.zeros_like(lam), torch.full_like(lam, torch.inf)
    for _ in range(10):
        chance = torch.softmax(torch.addcmul(logits, direction_logits, length[:, None, None]), dim=1)
        weighted = chance.mul_(direction_logits)
        mean_PN = weighted.sum(dim=1)
        slope = linear + length * dd + (weights * mean_PN).sum(dim=1)
        found = slope.abs() <= small
        if bool(found.all()):
            return length
        second_PN = weighted.mul_(direction_logits).sum(dim=1)
        bend = dd + (weights * (second_PN - mean_PN.square())).sum(dim=1)
        low, high = torch.where(slope <= 0, length, low), torch.where(slope > 0, length, high)
        newton = length - slope / bend.clamp(min=1e-30)
        halfway = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        safe = (newton > low) & (newton < high) & (newton < 8 * length)
        length = torch.where(found, length, torch.where(safe, newton, halfway))
    return torch.where(found, length, low)
