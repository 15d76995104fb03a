"""The abstract task head: a map of features in, losses of a task or answers out. Knows no backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from keepsight.core.scene import Answer, Target, Task


class TaskHead(nn.Module, ABC):
    """One task (detection, instance segmentation or captioning) on one map of features [B, C, h, w].

    Everything it needs to answer (normalisation included) is a parameter or a buffer, so that its state dict is the whole of it,
    and `shape` rebuilds the empty module. Losses are means over the global batch: what they are divided by (objects, masks,
    words) is counted over all processes (`core.processes.averaged`), so that averaged gradients are those of one process.

    Attributes:
        task: What it does.
    """

    task: Task

    @abstractmethod
    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        """Weighted, named scalars; their sum is minimised. Each image's targets are of the same map's row.

        A batch without any object, or without any caption, gives finite losses with gradients.
        """

    @abstractmethod
    def answers(self, map_BChw: Tensor) -> list[Answer]:
        """One answer an image, without gradients; in evaluation mode the same for the same map, whatever else is in the batch."""

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """Keyword arguments of the constructor, as JSON can hold them."""

    def forward(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        """`losses`, reached through the module call."""
        return self.losses(map_BChw, targets)
