"""How fast the loss rises around the weights that training ended at. Knows a network and its loss, and no image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Mean rise of the loss under random perturbations of the weights.

    Attributes:
        loss: At the weights themselves.
        rise: Mean of loss(W + E) - loss(W).
        spread: Standard deviation of that over the drawn pairs +E, -E; 0 for one pair.
        rho: ||E|| / ||W|| of every tensor.
        pairs: Perturbations drawn, each taken with both signs.
    """

    loss: float
    rise: float
    spread: float
    rho: float
    pairs: int


@torch.no_grad()
def sharpness(
    network: nn.Module, loss: Callable[[], float], rho: float = 0.01, pairs: int = 5, seed: int = 0
) -> Sharpness:
    """Average-case sharpness with perturbations relative to the weights.

    For each tensor W_l of the network E_l = rho ||W_l|| G_l / ||G_l|| with normal G_l, and

        rise = mean over draws of (loss(W + E) + loss(W - E)) / 2 - loss(W).

    Perturbations relative to each tensor's norm do not depend on how a network is scaled (as filter normalisation does for
    pictures of losses: Li et al. 2018, arXiv 1712.09913); the average over random ones is the average-case adaptive sharpness of
    Andriushchenko et al. 2023 (arXiv 2302.07011), with one scale a tensor in place of one a weight. With both signs the slope
    cancels exactly. The weights are put back bit by bit.

    Args:
        network: Its floating-point parameters are perturbed.
        loss: The loss at the network's present weights, a deterministic function of them.
        rho: Relative size of a perturbation.
        pairs: Perturbations drawn.
        seed: Of the draws.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> of = sharpness(layer, lambda: layer.weight.square().sum().item(), rho=0.1, pairs=2)
        >>> abs(of.rise / of.loss - 0.01) < 1e-5
        True
    """
    weights = [p for p in network.parameters() if p.is_floating_point()]
    kept = [p.detach().clone() for p in weights]
    generator = torch.Generator().manual_seed(seed)
    here, rises = loss(), []
    try:
        for _ in range(pairs):
            drawn = [_perturbation(w, rho, generator) for w in kept]
            both = []
            for sign in (1.0, -1.0):
                for p, w, e in zip(weights, kept, drawn, strict=True):
                    p.copy_(w + sign * e)
                both.append(loss())
            rises.append(sum(both) / 2 - here)
    finally:
        for p, w in zip(weights, kept, strict=True):
            p.copy_(w)
    rise = torch.tensor(rises, dtype=torch.float64)
    return Sharpness(here, rise.mean().item(), rise.std().item() if pairs > 1 else 0.0, rho, pairs)


def _perturbation(weight: torch.Tensor, rho: float, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(weight.shape, generator=generator).to(weight)
    scale: torch.Tensor = rho * weight.norm() / normal.norm().clamp(min=1e-30)
    return normal * scale
