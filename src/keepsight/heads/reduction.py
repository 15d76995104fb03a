"""Standardised features on few axes: the token that small networks work on. Knows tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keepsight.heads.linear import standardisation


class Reduction(nn.Module):
    """z = ((x - mean) / scale) A, with A [F, D] chosen without labels.

    Everything is a buffer: it is fitted once (`fit`, `fit_views`) and not trained.

    Args:
        features: Length F of the read-out features.
        reduced: Length D of z.
    """

    mean_F: Tensor
    scale_F: Tensor
    axes_FD: Tensor

    def __init__(self, features: int, reduced: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("scale_F", torch.ones(features))
        self.register_buffer("axes_FD", torch.zeros(features, reduced))

    def forward(self, x_BF: Tensor) -> Tensor:
        """z [B, D]."""
        return ((x_BF - self.mean_F) / self.scale_F) @ self.axes_FD

    @staticmethod
    def fit(x_NF: Tensor, reduced: int, power: float = 0.25) -> Reduction:
        """Principal axes of features [N, F], labelled and unlabelled; the first `reduced` are kept.

        An axis of variance v is divided by v^power (0 keeps the variances, 0.5 makes them equal). Axes of (nearly) no variance
        are left out, so that D = min(reduced, rank). See `_scaled`.

        Raises:
            ValueError: There are fewer than two different images.

        Example:
            >>> reduction = Reduction.fit(torch.randn(50, 8), reduced=3)
            >>> reduction(torch.zeros(2, 8)).shape
            torch.Size([2, 3])
        """
        mean_F, scale_F = standardisation(x_NF)
        values_D, axes_FD = principal_axes((x_NF - mean_F) / scale_F, reduced)
        return _scaled(x_NF, mean_F, scale_F, axes_FD / values_D.pow(power))

    @staticmethod
    def fit_views(x_NF: Tensor, views: Sequence[Tensor], reduced: int, ridge: float = 0.1) -> Reduction:
        """Axes in which the augmented views of one image differ little: linear content, with what varies between views as style.

        On the first `reduced` principal axes, W is the mean covariance [D, D] of the views of one image (the plain one and each of
        `views` [N, F]) around their mean, and A = axes (W + ridge tr(W)/D I)^(-1/2). Directions that shift, rotation or brightness
        move are shrunk, those that tell images apart whatever the view are not (within-class covariance normalisation,
        Hatch et al. 2006, with an image as its own class). No label is used.

        Raises:
            ValueError: There are fewer than two different images, or no views.
        """
        if not views:
            raise ValueError("there are no views to compare")
        mean_F, scale_F = standardisation(x_NF)
        _, axes_FD = principal_axes((x_NF - mean_F) / scale_F, reduced)
        projected_VND = torch.stack([((x - mean_F) / scale_F) @ axes_FD for x in (x_NF, *views)])
        apart_MD = (projected_VND - projected_VND.mean(dim=0)).flatten(0, 1).double()
        within_DD = apart_MD.T @ apart_MD / len(apart_MD)
        values_D, vectors_DD = torch.linalg.eigh(within_DD)
        values_D = values_D.clamp(min=0) + ridge * within_DD.trace() / len(within_DD)
        shrink_DD = (vectors_DD / values_D.clamp(min=1e-12).sqrt()) @ vectors_DD.T
        return _scaled(x_NF, mean_F, scale_F, axes_FD @ shrink_DD.to(x_NF))


def principal_axes(x_NF: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Variances [D] and axes [F, D] of the rows, which must be centred; D = min(wanted, rank), largest variance first.

    Signs are fixed by the largest entry of each axis.

    Raises:
        ValueError: All rows are the same.
    """
    x = x_NF.double()
    n, f = x.shape
    if n < f:  # the smaller of the two Gram matrices has the same eigenvalues
        values, left = torch.linalg.eigh(x @ x.T)
        axes = x.T @ left / values.clamp(min=1e-300).sqrt()
    else:
        values, axes = torch.linalg.eigh(x.T @ x)
    values, axes = values.flip(0), axes.flip(1)
    kept = min(wanted, int((values > 1e-6 * values[0]).sum())) if len(values) and values[0] > 0 else 0
    if kept == 0:
        raise ValueError("there are no axes: all images have the same features")
    values, axes = values[:kept] / n, axes[:, :kept]
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return values.to(x_NF), (axes * signs).to(x_NF)


def _scaled(x_NF: Tensor, mean_F: Tensor, scale_F: Tensor, axes_FD: Tensor) -> Reduction:
    """The reduction with these axes, divided by one number, so that z has a mean square of one an entry over x."""
    out = Reduction(*axes_FD.shape)
    out.load_state_dict({"mean_F": mean_F, "scale_F": scale_F, "axes_FD": axes_FD})
    out.axes_FD /= out(x_NF).square().mean().sqrt()
    return out
