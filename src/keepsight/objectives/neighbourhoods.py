"""Do two feature matrices agree on which images are alike? RSA over all pairs, mutual k-NN over the nearest. Pure functions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.objectives.pairs import ROUNDING, centred, checked, full_precision, ratio, unit

ROWS = 1024  # rows of a similarity matrix at a time


def rsa(
    x: Tensor,
    y: Tensor,
    dissimilarity: Literal["euclidean", "correlation"] = "euclidean",
    comparison: Literal["spearman", "pearson"] = "spearman",
) -> Tensor:
    """Representational similarity analysis: correlation of the two sides' dissimilarities over all pairs (Kriegeskorte 2008).

    "euclidean" distances are unchanged (up to scale) by rotations, isotropic scaling and translations. "correlation" (one
    minus Pearson's r of two images' feature vectors) is unchanged by scaling and by adding a number to an image's whole
    vector, *not* by rotations or translations. "spearman" compares ranks (ties share theirs) and has no gradient;
    "pearson" has one, except where two images coincide. O(n^2) memory.

    Args:
        x: Features [n, d1].
        y: Features of the same images [n, d2].
        dissimilarity: How unlike two images are.
        comparison: How the two lists of n (n - 1) / 2 dissimilarities are compared.

    Returns:
        0-d in [-1, 1]; 0 if all dissimilarities of a side are equal (constant features among them).

    Raises:
        ValueError: with fewer than 3 images (one pair has no correlation), or for an unknown option.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(rsa(x, 3 * x - 1).item(), 4)
        1.0
    """
    x_ND, y_NE = checked(x, y, 3)
    if dissimilarity not in ("euclidean", "correlation") or comparison not in ("spearman", "pearson"):
        raise ValueError(
            f"rsa compares euclidean or correlation dissimilarities by spearman or pearson, "
            f"got {dissimilarity!r} and {comparison!r}"
        )
    with full_precision(x_ND):
        x_P, y_P = _dissimilarities(x_ND, dissimilarity), _dissimilarities(y_NE, dissimilarity)
        if comparison == "spearman":
            x_P, y_P = _ranks(x_P, x_ND.dtype), _ranks(y_P, x_ND.dtype)
        x_P1, y_P1 = unit(centred(x_P[:, None])), unit(centred(y_P[:, None]))
        return ratio((x_P1 * y_P1).sum(), x_P1.square().sum(), y_P1.square().sum())


def _dissimilarities(x_ND: Tensor, kind: str) -> Tensor:
    """Of every pair i < j, [n (n - 1) / 2]."""
    if kind == "euclidean":
        return F.pdist(centred(x_ND))
    # An image whose vector is constant has no direction: its correlation with every other is 0.
    left_ND = x_ND - x_ND.mean(dim=1, keepdim=True)
    size_N1 = torch.linalg.vector_norm(left_ND, dim=1, keepdim=True)
    rounding = ROUNDING * torch.finfo(x_ND.dtype).eps * torch.linalg.vector_norm(x_ND.detach(), dim=1, keepdim=True)
    flat_N1 = size_N1 <= rounding
    own_ND = torch.where(flat_N1, torch.zeros_like(left_ND), left_ND / torch.where(flat_N1, 1.0, size_N1))
    first, second = torch.triu_indices(len(x_ND), len(x_ND), offset=1, device=x_ND.device)
    dissimilar_P: Tensor = 1 - (own_ND @ own_ND.T)[first, second]
    return dissimilar_P


def _ranks(values_P: Tensor, dtype: torch.dtype) -> Tensor:
    """Ranks from 1; equal values share their mean rank."""
    _, group_P, counts = torch.unique(values_P.detach(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(dim=0).double()
    ranks: Tensor = ends - (counts - 1) / 2
    return ranks[group_P].to(dtype)


@torch.no_grad()
def mutual_knn(x: Tensor, y: Tensor, k: int = 10, metric: Literal["cosine", "euclidean"] = "cosine") -> Tensor:
    """Mean share of an image's k nearest other images that are the same on both sides (Huh et al. 2024).

    Unchanged by rotations and isotropic scaling; with "euclidean" by translations too, with "cosine" by scaling each
    image for itself. Which of equally near images is taken is arbitrary. Unrelated features give about k / (n - 1). O(n
    d) memory.

    Args:
        x: Features [n, d1].
        y: Features of the same images [n, d2].
        k: Neighbours, at most n - 1 (where the share is always 1).
        metric: "cosine" similarity of the features as they are, or "euclidean" distance.

    Returns:
        0-d in [0, 1].

    Raises:
        ValueError: if k is not in 1 ... n - 1, or for an unknown metric.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> mutual_knn(x, -x, k=1, metric="euclidean").item()
        1.0
    """
    x_ND, y_NE = checked(x, y, 2)
    n = len(x_ND)
    if not 1 <= k < n:
        raise ValueError(f"k must be from 1 to {n - 1}, the number of other images, got {k}")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be cosine or euclidean, got {metric!r}")
    with full_precision(x_ND):
        if metric == "cosine":
            x_ND, y_NE = F.normalize(x_ND, dim=1), F.normalize(y_NE, dim=1)
        else:
            x_ND, y_NE = unit(centred(x_ND)), unit(centred(y_NE))
        shared = torch.zeros((), dtype=torch.int64, device=x_ND.device)
        for start in range(0, n, ROWS):
            near_x, near_y = (_nearest(part, start, k) for part in (x_ND, y_NE))
            member_RN = torch.zeros(len(near_x), n, dtype=torch.bool, device=x_ND.device).scatter_(1, near_x, True)
            shared += member_RN.gather(1, near_y).sum()
    return shared.to(x_ND.dtype) / (n * k)


def _nearest(x_ND: Tensor, start: int, k: int) -> Tensor:
    """The k nearest others [r, k] of rows start ... start + r: those with the largest <a, b> - ||b||^2 / 2."""
    rows_RD = x_ND[start : start + ROWS]
    near_RN = rows_RD @ x_ND.T - x_ND.square().sum(dim=1) / 2
    own = torch.arange(len(rows_RD), device=x_ND.device)
    near_RN[own, start + own] = -torch.inf
    return near_RN.topk(k, dim=1).indices
