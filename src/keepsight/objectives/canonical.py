"""Canonical correlations of two feature matrices: mean CCA, SVCCA and PWCCA. In float64, without gradients.

Canonical correlations are the singular values of U_x^T U_y, where U_x and U_y are orthonormal bases of the centred
features' columns. Mean CCA is unchanged by any invertible linear map of either side, SVCCA by rotations, isotropic
scaling and translations (what it cuts depends on variances), PWCCA by those of x and by any invertible map of y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keepsight.objectives.pairs import centred, checked


@torch.no_grad()
def mean_cca(x: Tensor, y: Tensor) -> Tensor:
    """Mean canonical correlation, over as many as the smaller rank of the two; 0 if a side is constant.

    Args:
        x: Features [n, d1].
        y: Features of the same images [n, d2].

    Returns:
        0-d float64 in [0, 1]. Unrelated features give about sqrt(d / n), not 0: compare with `shuffled_control`.

    Raises:
        ValueError: if a side fills the whole space of n - 1 dimensions, as it does for n <= d: every correlation would be 1.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [3.0, 2.0]])
        >>> round(mean_cca(x, x @ torch.tensor([[1.0, 2.0], [0.0, 3.0]])).item(), 4)
        1.0
    """
    basis_x, basis_y = (_basis(part, 1.0) for part in _doubled(x, y))
    _refuse_full(len(x), basis_x, basis_y, "mean CCA")
    return _correlations(basis_x, basis_y)[1].mean() if _has_both(basis_x, basis_y) else _zero(basis_x)


@torch.no_grad()
def svcca(x: Tensor, y: Tensor, variance: float = 0.99) -> Tensor:
    """Mean canonical correlation of the leading principal components that hold `variance` of each side (Raghu et al. 2017).

    Args:
        x: Features [n, d1].
        y: Features of the same images [n, d2].
        variance: Part of each side's variance that is kept, in (0, 1].

    Returns:
        0-d float64 in [0, 1]; 0 if a side is constant.

    Raises:
        ValueError: if the variance is out of range, or a cut side still fills all n - 1 dimensions.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [3.0, 2.0]])
        >>> round(svcca(x, -2 * x.flip(1)).item(), 4)
        1.0
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be above 0 and at most 1, got {variance}")
    basis_x, basis_y = (_basis(part, variance) for part in _doubled(x, y))
    _refuse_full(len(x), basis_x, basis_y, "SVCCA")
    return _correlations(basis_x, basis_y)[1].mean() if _has_both(basis_x, basis_y) else _zero(basis_x)


@torch.no_grad()
def pwcca(x: Tensor, y: Tensor) -> Tensor:
    """Canonical correlations weighted by how much of x each of its canonical variates h_i carries (Morcos et al. 2018).

    sum_i a_i rho_i / sum_i a_i with a_i = sum_j |<h_i, x_j>| over x's columns. Not symmetric: the weights are x's.

    Args:
        x: Features [n, d1] that give the weights.
        y: Features of the same images [n, d2].

    Returns:
        0-d float64 in [0, 1]; 0 if a side is constant.

    Raises:
        ValueError: as `mean_cca`.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [3.0, 2.0]])
        >>> round(pwcca(x, 2 * x + 1).item(), 4)
        1.0
    """
    x_ND, y_NE = _doubled(x, y)
    basis_x, basis_y = _basis(x_ND, 1.0), _basis(y_NE, 1.0)
    _refuse_full(len(x), basis_x, basis_y, "PWCCA")
    if not _has_both(basis_x, basis_y):
        return _zero(basis_x)
    variates_NR, correlations_R = _correlations(basis_x, basis_y)
    weights_R = (variates_NR.T @ x_ND).abs().sum(dim=1)
    return weights_R @ correlations_R / weights_R.sum()


def _doubled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both centred, in float64: what counts as rank is decided there."""
    x_ND, y_NE = checked(x, y, 2)
    return centred(x_ND.double()), centred(y_NE.double())


def _basis(x_ND: Tensor, variance: float) -> Tensor:
    """Orthonormal columns [n, r] of the leading components; all that are above rounding if variance is 1."""
    left: Tensor
    left, values, _ = torch.linalg.svd(x_ND, full_matrices=False)
    if variance == 1 or not values[0] > 0:
        rank = int((values > max(x_ND.shape) * torch.finfo(values.dtype).eps * values[0]).sum())
    else:
        held = values.square().cumsum(dim=0) / values.square().sum()
        rank = int((held < variance).sum()) + 1
    return left[:, :rank]


def _refuse_full(n: int, basis_x: Tensor, basis_y: Tensor, name: str) -> None:
    if max(basis_x.shape[1], basis_y.shape[1]) >= n - 1:
        raise ValueError(
            f"{name} of {n} images needs fewer than {n - 1} dimensions on both sides (got {basis_x.shape[1]} and "
            f"{basis_y.shape[1]}): every correlation would be 1; use more images, or svcca with less variance"
        )


def _has_both(basis_x: Tensor, basis_y: Tensor) -> bool:
    return min(basis_x.shape[1], basis_y.shape[1]) > 0


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)


def _correlations(basis_x: Tensor, basis_y: Tensor) -> tuple[Tensor, Tensor]:
    """x's canonical variates [n, r], orthonormal, and their correlations [r]."""
    left, values, _ = torch.linalg.svd(basis_x.T @ basis_y, full_matrices=False)
    return basis_x @ left, values.clamp(max=1)
