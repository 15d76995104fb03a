"""Centred kernel alignment of two feature matrices, linear and RBF, biased and debiased. Pure functions.

With K and L the kernel matrices of the same n images, CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al.
2019). *Biased* takes HSIC(K, L) = <HKH, HLH>; it is far above 0 for unrelated features when n is not much larger than
the dimension. *Debiased* takes the unbiased estimator of HSIC (Song et al. 2012; Nguyen et al. 2021, eq. 3), for which
unrelated features give about 0, also slightly negative values.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from keepsight.objectives.pairs import centred, checked, full_precision, ratio, unit

Number = TypeVar("Number", float, Tensor)


def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> Tensor:
    """Linear CKA, differentiable, through d x d or n x n products, whichever is less work.

    Unchanged by rotations, by isotropic scaling and by translations of either side. Constant features share nothing: 0.

    Args:
        x: Features [n, d1].
        y: Features of the same images [n, d2].
        debiased: Use the unbiased estimator.

    Returns:
        0-d; biased in [0, 1], debiased at most 1.

    Raises:
        ValueError: with fewer than 2 images, or 4 if debiased (fewer leave nothing to estimate).

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [3.0, 2.0]])
        >>> round(linear_cka(x, 3 * x.flip(1) + 1, debiased=True).item(), 4)
        1.0
    """
    x_ND, y_NE = checked(x, y, 4 if debiased else 2)
    with full_precision(x_ND):
        return centred_linear_cka(unit(centred(x_ND)), unit(centred(y_NE)), debiased)


def centred_linear_cka(x_ND: Tensor, y_NE: Tensor, debiased: bool) -> Tensor:
    """Linear CKA of features that are centred, and scaled so that fourth powers do not overflow."""
    (n, d1), d2 = x_ND.shape, y_NE.shape[1]
    if 2 * n * (d1 + d2) < 2 * (d1 * d1 + d1 * d2 + d2 * d2):  # multiplications an image on either way
        kernel_x, kernel_y = x_ND @ x_ND.T, y_NE @ y_NE.T
        xy, xx, yy = (_dot(a, b) for a, b in ((kernel_x, kernel_y), (kernel_x, kernel_x), (kernel_y, kernel_y)))
    else:
        products = (a.T @ b for a, b in ((x_ND, y_NE), (x_ND, x_ND), (y_NE, y_NE)))
        xy, xx, yy = (_dot(product, product) for product in products)
    if not debiased:
        return ratio(xy, xx, yy)
    p_N, q_N = x_ND.square().sum(dim=1), y_NE.square().sum(dim=1)
    own_3 = torch.stack([p_N @ q_N, p_N @ p_N, q_N @ q_N])
    p, q = p_N.sum(), q_N.sum()
    hsic_3, rounding_3 = unbiased_hsic(n, torch.stack([xy, xx, yy]), own_3, torch.stack([p * q, p * p, q * q]))
    # What is left of a side's own estimate may be rounding alone (few distinct images): then it is nothing.
    nothing_3 = hsic_3 <= torch.finfo(hsic_3.dtype).eps * rounding_3
    own_3 = torch.where(nothing_3, torch.zeros_like(hsic_3), hsic_3)
    return ratio(hsic_3[0], own_3[1], own_3[2])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def unbiased_hsic(n: int, product: Number, own: Number, sums: Number) -> tuple[Number, Number]:
    """The unbiased estimator of n (n - 3) HSIC from sums over centred features, and the size of its rounding in units of epsilon.

    With the diagonal of K = X X^T left out and rows of X that sum to zero, it is
    ||X^T Y||^2 - n / (n - 2) sum p_i q_i + (sum p)(sum q) / ((n - 1)(n - 2)), where p_i = ||x_i||^2 and q_i = ||y_i||^2.

    Args:
        n: Images, at least 4.
        product: ||X^T Y||^2.
        own: Sum of p_i q_i.
        sums: Sum of p_i, times sum of q_i.
    """
    own = own * (n / (n - 2))
    return product - own + sums * (1 / ((n - 1) * (n - 2))), (product + own) * 16


def rbf_cka(x: Tensor, y: Tensor, bandwidth: float = 0.5, debiased: bool = False) -> Tensor:
    """CKA with the kernels exp(-||a - b||^2 / (2 s^2)), s = `bandwidth` times the median distance of that side; O(n^2) memory.

    Unchanged by rotations, isotropic scaling and translations of either side; differentiable, through the median too.
    If more than half of the pairs are duplicates, the median is taken over those that are not. Constant features share
    nothing: 0.

    Args:
        x: Features [n, d1].
        y: Features of the same images [n, d2].
        bandwidth: Fraction of the median distance between two different images; small looks at near neighbours only.
        debiased: Use the unbiased estimator.

    Raises:
        ValueError: with fewer than 2 images, or 4 if debiased; or if the bandwidth is not positive.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
        >>> round(rbf_cka(x, 2 - x).item(), 4)
        1.0
    """
    x_ND, y_NE = checked(x, y, 4 if debiased else 2)
    if not bandwidth > 0:
        raise ValueError(f"the bandwidth must be above 0, got {bandwidth}")
    with full_precision(x_ND):
        kernel_x, kernel_y = (
            _centred_kernel(_rbf_kernel(unit(centred(part)), bandwidth), debiased) for part in (x_ND, y_NE)
        )
        xy, xx, yy = (kernel_x * kernel_y).sum(), kernel_x.square().sum(), kernel_y.square().sum()
        rounding = (ROUNDED * torch.finfo(xy.dtype).eps * len(x_ND)) ** 2
        return ratio(xy, *(torch.where(part <= rounding, torch.zeros_like(part), part) for part in (xx, yy)))


ROUNDED = 4.0  # entries of a centred kernel below this many machine epsilons (its entries are at most 1) are rounding


def _rbf_kernel(x_ND: Tensor, bandwidth: float) -> Tensor:
    """The kernel matrix of centred features; ones if they are constant."""
    norms_N = x_ND.square().sum(dim=1)
    squares_NN = (norms_N[:, None] + norms_N[None, :] - 2 * x_ND @ x_ND.T).clamp(min=0)
    # The square of a distance comes as a difference of numbers of this size: what is below its rounding is 0.
    rounding = 16 * torch.finfo(x_ND.dtype).eps * norms_N.max().detach()
    same_NN = torch.eye(len(x_ND), dtype=torch.bool, device=x_ND.device) | (squares_NN <= rounding)
    squares_NN = torch.where(same_NN, torch.zeros_like(squares_NN), squares_NN)
    upper = torch.triu_indices(len(x_ND), len(x_ND), offset=1, device=x_ND.device)
    pairs = squares_NN[upper[0], upper[1]]
    median = pairs.median()
    if median <= 0:
        apart = pairs[pairs > 0]
        if not len(apart):
            return torch.exp(-squares_NN)  # ones, that know what they came from
        median = apart.median()
    return torch.exp(-squares_NN / (2 * bandwidth**2 * median))


def _centred_kernel(kernel_NN: Tensor, debiased: bool) -> Tensor:
    """H K H, or its U-centred version: zero diagonal, and rows that sum to zero without it (Szekely and Rizzo 2014)."""
    n = len(kernel_NN)
    if not debiased:
        return kernel_NN - kernel_NN.mean(dim=0) - kernel_NN.mean(dim=1, keepdim=True) + kernel_NN.mean()
    off_NN = 1 - torch.eye(n, dtype=kernel_NN.dtype, device=kernel_NN.device)
    bare_NN = kernel_NN * off_NN
    rows_N = bare_NN.sum(dim=1) / (n - 2)
    whole = bare_NN.sum() / ((n - 1) * (n - 2))
    return (bare_NN - rows_N[:, None] - rows_N[None, :] + whole) * off_NN
