"""Exponential moving average of the trained weights (EMA). Knows no method and no loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """mean <- d mean + (1 - d) weight after every step, with d = min(decay, (1 + t) / (10 + t)) at step t.

    The warm-up of d (as in TensorFlow's ExponentialMovingAverage) keeps the first weights from weighing for 1 / (1 - decay) steps.

    Args:
        parameters: What is averaged; the list is kept, the parameters are changed within `applied` only.
        decay: d after the warm-up.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._mean = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        weights: list[Tensor] = [p.detach() for p in self._parameters]
        torch._foreach_lerp_(self._mean, weights, 1 - decay)

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, p in zip(self._mean, self._parameters, strict=True):
            kept = p.detach().clone()
            p.copy_(mean)
            mean.copy_(kept)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold the mean."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def keep(self) -> None:
        """The parameters hold the mean from now on."""
        for mean, p in zip(self._mean, self._parameters, strict=True):
            p.copy_(mean)
