"""How alike are two representations of the same images? The public entry to the measures; each is a file of its own.

Every measure takes x [n, d1] and y [n, d2], one row an image, float, not necessarily centred, and returns a 0-d tensor.
Half precision is computed in float32, and a surrounding autocast does not apply. Not a number in, not a number out (or
an error of the linear algebra).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keepsight.objectives.canonical import mean_cca, pwcca, svcca
from keepsight.objectives.cka import linear_cka, rbf_cka
from keepsight.objectives.neighbourhoods import mutual_knn, rsa
from keepsight.objectives.procrustes import Procrustes, procrustes, procrustes_distance
from keepsight.objectives.streaming_cka import StreamingCKA

__all__ = [
    "Procrustes",
    "StreamingCKA",
    "linear_cka",
    "mean_cca",
    "mutual_knn",
    "procrustes",
    "procrustes_distance",
    "pwcca",
    "rbf_cka",
    "rsa",
    "shuffled_control",
    "svcca",
]


@torch.no_grad()
def shuffled_control(
    x: Tensor, y: Tensor, measure: Callable[[Tensor, Tensor], Tensor], seed: int = 0, repeats: int = 1
) -> Tensor:
    """What the measure says when nothing is shared: its mean over `repeats` random orders of y's rows. Without gradients.

    Args:
        x: Features [n, d1].
        y: Features [n, d2].
        measure: From two matrices to a 0-d tensor, for instance `linear_cka`.
        seed: Of the orders.
        repeats: Orders to take the mean over.

    Example:
        >>> x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
        >>> shuffled_control(x, x, linear_cka).item() > 0.7  # biased CKA at n < d: unrelated features look alike
        True
        >>> abs(shuffled_control(x, x, lambda a, b: linear_cka(a, b, debiased=True), repeats=20).item()) < 0.2
        True
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(y), generator=generator).to(y.device) for _ in range(repeats))
    return torch.stack([measure(x, y[order]) for order in orders]).mean()
