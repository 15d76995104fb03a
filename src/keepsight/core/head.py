"""The abstract head: read-out features in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Maps features [B, F] to logits [B, K]; softmax over K (a sigmoid of each, in multi-label data) gives the probabilities.

    Everything it needs at prediction time (normalisation included) is a parameter or a buffer, so that its state dict is the
    whole of it, and `shape` rebuilds the empty module.
    """

    @abstractmethod
    def forward(self, x_BF: Tensor) -> Tensor:
        """Logits [B, K]."""

    @abstractmethod
    def shape(self) -> dict[str, int]:
        """Keyword arguments of the constructor."""
