"""Tokens of features, fitted without labels, whatever the images are. Knows tensors only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from keepsight.core import Token
from keepsight.heads.linear import standardisation
from keepsight.heads.reduction import principal_axes


def make_token(x_NF: Tensor, views: Iterable[Tensor], reduced: int, ridge: float = 0.03, power: float = 0.25) -> Token:
    """Features [N, F] on few axes; with views, on those in which the views of one image differ little.

    Without views: the first `reduced` principal axes of the standardised features, each divided by its variance to the power
    `power`.

    With views: on those axes, W is the mean covariance [D, D] of the views of one image (the plain one and each of `views`) around
    their mean, and A = axes (W + ridge tr(W)/D I)^(-1/2). Directions that shift, rotation or brightness move are shrunk, those that
    tell images apart whatever the view are not (within-class covariance normalisation, Hatch et al. 2006, with an image as its own
    class).

    Either way all is divided by one number, so that z has a mean square of one an entry. Where all images are the same, the
    token is a single zero.

    Args:
        x_NF: Of the plain images, labelled and unlabelled.
        views: Features [N, F] of augmented views of the same images; taken one at a time, so that they need not all be in memory.
        reduced: D, or less where there are fewer axes.
        ridge: See above.
        power: See above.

    Example:
        >>> x = torch.randn(50, 8)
        >>> make_token(x, [x + 0.1 * torch.randn(50, 8)], reduced=3).z_ND.shape
        torch.Size([50, 3])
    """
    mean_F, scale_F = standardisation(x_NF)
    standard_NF = (x_NF - mean_F) / scale_F
    if bool((x_NF == x_NF[:1]).all()):
        # No axis tells any two images apart (but for rounding), and the prior is all there is to predict.
        axes_FD = x_NF.new_zeros(x_NF.shape[1], 1)
        return Token(
            x_NF[0].clone(),
            scale_F,
            axes_FD,
            x_NF.new_zeros(len(x_NF), 1),
            tuple(x_NF.new_zeros(len(x_NF), 1) for _ in views),
        )
    values_D, axes_FD = principal_axes(standard_NF, reduced)
    plain_ND = standard_NF @ axes_FD
    others = [((x - mean_F) / scale_F) @ axes_FD for x in views]
    shrink_DD = _shrink(torch.stack([plain_ND, *others]), ridge) if others else torch.diag(values_D.pow(-power))
    z_ND = plain_ND @ shrink_DD
    size = z_ND.square().mean().sqrt()
    shrink_DD = shrink_DD / size
    return Token(mean_F, scale_F, axes_FD @ shrink_DD, z_ND / size, tuple(other @ shrink_DD for other in others))


def _shrink(projected_VND: Tensor, ridge: float) -> Tensor:
    """(W + ridge tr(W)/D I)^(-1/2) of the covariance W within images."""
    within_DD = torch.zeros(projected_VND.shape[2], projected_VND.shape[2], dtype=torch.float64)
    mean_ND = projected_VND.mean(dim=0)
    for view_ND in projected_VND:
        apart_ND = view_ND - mean_ND
        within_DD += (apart_ND.T @ apart_ND).double().cpu()
    within_DD /= len(projected_VND) * projected_VND.shape[1]
    values_D, vectors_DD = torch.linalg.eigh(within_DD)
    values_D = values_D.clamp(min=0) + ridge * within_DD.trace() / len(within_DD)
    shrink_DD: Tensor = (vectors_DD / values_D.clamp(min=1e-12).sqrt()) @ vectors_DD.T
    return shrink_DD.to(projected_VND)
