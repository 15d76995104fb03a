"""Two feature matrices of the same images: checks, centring and precision shared by the similarity measures. Knows no measure."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 16.0  # a spread below this many machine epsilons of the size is rounding: the features are constant


def full_precision(x_ND: Tensor) -> torch.autocast:
    """A context in which products of `x_ND` are not cut to 16 bits by a surrounding autocast."""
    return torch.autocast(x_ND.device.type, enabled=False)


def checked(x_ND: Tensor, y_NE: Tensor, smallest: int) -> tuple[Tensor, Tensor]:
    """Both in one dtype, float32 or better.

    Raises:
        ValueError: if they are not two float matrices with the same number of rows, at least `smallest`.
    """
    if x_ND.ndim != 2 or y_NE.ndim != 2 or len(x_ND) != len(y_NE) or 0 in (*x_ND.shape[1:], *y_NE.shape[1:]):
        raise ValueError(
            f"x and y must be matrices with one row an image and the same images, got {list(x_ND.shape)} and {list(y_NE.shape)}"
        )
    if not (x_ND.is_floating_point() and y_NE.is_floating_point()):
        raise ValueError(f"x and y must be real floating point, got {x_ND.dtype} and {y_NE.dtype}")
    if len(x_ND) < smallest:
        raise ValueError(f"this measure needs at least {smallest} images, got {len(x_ND)}")
    dtype = torch.promote_types(torch.promote_types(x_ND.dtype, y_NE.dtype), torch.float32)
    return x_ND.to(dtype), y_NE.to(dtype)


def centred(x_ND: Tensor) -> Tensor:
    """Column means subtracted; exactly zero, without a gradient, where what is left of the whole matrix is only rounding.

    Example:
        >>> centred(torch.full((3, 1), 0.1)).tolist()
        [[0.0], [0.0], [0.0]]
    """
    left_ND = x_ND - x_ND.mean(dim=0)
    rounding = ROUNDING * torch.finfo(x_ND.dtype).eps * torch.linalg.vector_norm(x_ND.detach())
    return torch.where(torch.linalg.vector_norm(left_ND.detach()) <= rounding, torch.zeros_like(left_ND), left_ND)


def unit(x_ND: Tensor) -> Tensor:
    """Divided by its Frobenius norm, so that fourth powers neither overflow nor vanish; a zero matrix stays one.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0]])).round(decimals=4).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    square = x_ND.square().sum()
    nothing = square == 0
    return x_ND / torch.where(nothing, torch.ones_like(square), square).sqrt()


def ratio(top: Tensor, x_part: Tensor, y_part: Tensor) -> Tensor:
    """top / sqrt(x_part y_part); 0, without a gradient, where a part is not above 0 (nothing is shared with nothing).

    Example:
        >>> ratio(torch.tensor(6.0), torch.tensor(4.0), torch.tensor(9.0)).item()
        1.0
    """
    nothing = (x_part <= 0) | (y_part <= 0)
    one = torch.ones_like(top)
    below = torch.where(nothing, one, x_part).sqrt() * torch.where(nothing, one, y_part).sqrt()
    return torch.where(nothing, torch.zeros_like(top), top / below)
