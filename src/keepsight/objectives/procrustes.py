"""Orthogonal Procrustes: how far two feature matrices are apart once the best rotation is removed. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from keepsight.objectives.pairs import centred, checked, full_precision

Solver = Literal["auto", "svd", "gram", "newton-schulz"]


@dataclass(frozen=True, slots=True)
class Procrustes:
    """What `procrustes` found.

    Attributes:
        distance: ||x Q - y||_F^2 at the best Q for d1 = d2; ||x||^2 + ||y||^2 - 2 ||x^T y||_* always; 0-d, with a gradient.
        rotation: Q [d1, d2] such that x Q is closest to y; None from the "gram" solver, which never builds a d x d matrix.
        nuclear: ||x^T y||_*, the sum of the singular values; 0-d, with a gradient.
    """

    distance: Tensor
    rotation: Tensor | None
    nuclear: Tensor


def procrustes(
    x: Tensor, y: Tensor, solver: Solver = "auto", iterations: int = 15, *, centred: bool = True
) -> Procrustes:
    """Squared distance of x to y up to the best orthogonal transform: ||x||^2 + ||y||^2 - 2 ||x^T y||_*.

    The gradient is 2 (x - y Q^T) to x and 2 (y - x Q) to y, at the Q found, with Q held fixed: by the envelope theorem
    that is exact, and nothing is ever differentiated through an SVD. With d1 different from d2 the narrower side counts
    as padded with zero columns. Unchanged by rotations of either side (and by translations if `centred`); scaling both
    by c multiplies it by c^2.

    Args:
        x: Features [n, d1].
        y: Reference features of the same images [n, d2].
        solver: "svd" of the d1 x d2 product, exact; "gram": QR of both transposes, then an n x n SVD, exact, for n < d;
            "newton-schulz": matrix products only, the nuclear norm from below; "auto": "gram" if n < min(d1, d2), else "svd".
        iterations: Newton-Schulz steps.
        centred: Subtract column means first.

    Returns:
        Distance, rotation and nuclear norm, in float32 or better. Where a side is constant the nuclear norm is 0 and Q arbitrary.

    Raises:
        ValueError: without two matrices of the same images (at least 2 if centred), or for an unknown solver.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> found = procrustes(x, x.flip(1) + 5)
        >>> round(found.distance.item(), 4), found.rotation.abs().round().tolist()
        (0.0, [[0.0, 1.0], [1.0, 0.0]])
    """
    x_ND, y_NE = checked(x, y, 2 if centred else 1)
    if solver not in ("auto", "svd", "gram", "newton-schulz"):
        raise ValueError(f"solver must be auto, svd, gram or newton-schulz, got {solver!r}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if solver == "auto":
        solver = "gram" if len(x_ND) < min(x_ND.shape[1], y_NE.shape[1]) else "svd"
    with full_precision(x_ND):
        if centred:
            x_ND, y_NE = _centred(x_ND), _centred(y_NE)
        if solver == "gram":
            rotation_DE, nuclear = None, _nuclear_of_gram(x_ND, y_NE)
        else:
            product_DE = x_ND.T @ y_NE
            with torch.no_grad():
                rotation_DE = _polar(product_DE) if solver == "svd" else _newton_schulz(product_DE, iterations)
            nuclear = (product_DE * rotation_DE).sum()
        distance = (x_ND.square().sum() + y_NE.square().sum() - 2 * nuclear).clamp(min=0)
    return Procrustes(distance, rotation_DE, nuclear)


def procrustes_distance(
    x: Tensor, y: Tensor, solver: Solver = "auto", iterations: int = 15, *, centred: bool = True
) -> Tensor:
    """Procrustes distance in units of the reference's spread: `procrustes(...).distance` / ||y||_F^2, y centred if asked.

    0: equal up to a rotation; 1: for instance, x has collapsed to a point. Unchanged by scaling both sides alike, not
    by scaling one.

    Args:
        x: Features [n, d1].
        y: Reference features of the same images [n, d2].
        solver: See `procrustes`.
        iterations: See `procrustes`.
        centred: Subtract column means first.

    Raises:
        ValueError: as `procrustes`, and if the reference is constant.

    Example:
        >>> y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> round(procrustes_distance(torch.zeros(3, 2), y).item(), 4)
        1.0
    """
    found = procrustes(x, y, solver, iterations, centred=centred)
    _, y_NE = checked(x, y, 1)
    size = (_centred(y_NE) if centred else y_NE).square().sum()
    if size == 0:
        raise ValueError("the reference features are constant: a distance relative to their spread does not exist")
    return found.distance / size


_centred = centred  # the functions above have an argument of that name


def _polar(product_DE: Tensor) -> Tensor:
    """The orthogonal factor U V^T of the thin SVD."""
    left_DR, _, right_RE = torch.linalg.svd(product_DE, full_matrices=False)
    rotation_DE: Tensor = left_DR @ right_RE
    return rotation_DE


def _newton_schulz(product_DE: Tensor, iterations: int) -> Tensor:
    """Z <- 1.5 Z - 0.5 Z Z^T Z from M / ||M||_F: every singular value goes to 1 (grows by 1.5 while small); zero stays zero."""
    z: Tensor = product_DE / torch.linalg.vector_norm(product_DE).clamp(min=torch.finfo(product_DE.dtype).tiny)
    tall = len(z) > z.shape[1]
    for _ in range(iterations):
        z = 1.5 * z - 0.5 * (z @ (z.T @ z) if tall else (z @ z.T) @ z)
    return z


def _nuclear_of_gram(x_ND: Tensor, y_NE: Tensor) -> Tensor:
    """||x^T y||_* through the triangular factors of x^T and y^T: the product of R_x and R_y^T has the same singular values."""
    with torch.no_grad():
        basis_x, factor_x = torch.linalg.qr(x_ND.T)
        basis_y, factor_y = torch.linalg.qr(y_NE.T)
        left, values, right = torch.linalg.svd(factor_x @ factor_y.T, full_matrices=False)
        towards_x = ((factor_y.T @ right.T) @ left.T) @ basis_x.T  # y Q^T [n, d1]
        towards_y = ((factor_x.T @ left) @ right) @ basis_y.T  # x Q [n, d2]
        nuclear = values.sum()
    # Each product equals the nuclear norm; written so, its gradient to x is y Q^T and to y is x Q.
    value: Tensor = (x_ND * towards_x).sum() + (y_NE * towards_y).sum() - nuclear
    return value
