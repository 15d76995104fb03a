"""The token that a semi-supervised method works on, fitted whatever the images are. Knows tensors only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from keepsight.heads.reduction import Reduction


def fit_token(x_NF: Tensor, views: Sequence[Tensor], reduced: int, ridge: float) -> Reduction:
    """`Reduction.fit_views`, or `Reduction.fit` without views; where all images are the same, a token of one zero."""
    if bool((x_NF == x_NF[:1]).all()):
        # No axis tells any two images apart (but for rounding), and the prior is all there is to predict.
        constant = Reduction(x_NF.shape[1], 1)
        constant.mean_F.copy_(x_NF[0])
        return constant
    return Reduction.fit_views(x_NF, views, reduced, ridge) if views else Reduction.fit(x_NF, reduced)


def view_mean(reduction: Reduction, x_NF: Tensor, views: Sequence[Tensor]) -> Tensor:
    """Tokens [N, D], each the mean over an image's views, the plain one included."""
    total_ND: Tensor = reduction(x_NF)
    for view_NF in views:
        total_ND = total_ND + reduction(view_NF)
    return total_ND / (1 + len(views))
