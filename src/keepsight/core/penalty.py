"""The abstract retention penalty: what keeps a tuned backbone near the one it came from. Knows no method and no backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from keepsight.core.features import Features


@dataclass(frozen=True, slots=True)
class Seen:
    """One step's images, as the tuned network sees them now and as the network it came from saw them.

    Attributes:
        inputs: The images [B, 3, H, W] (or the states that a cut backbone starts from).
        x_BF: Read-out features now, with gradients.
        x0_BF: The same of the untouched network, without gradients.
        layers: `Features` now, of every block that a penalty asked for (`Penalty.blocks`), by block.
        layers0: The same of the untouched network.
        now: Inputs -> read-out features [B, F] of the tuned network, with gradients: another forward pass.
        before: Inputs -> read-out features [B, F] of the untouched network: another forward pass.
        logits: Read-out features [B, F] -> class logits [B, K] of the head that is trained.
        step: Of the training, from 0.
    """

    inputs: Tensor
    x_BF: Tensor
    x0_BF: Tensor
    layers: Mapping[int, Features]
    layers0: Mapping[int, Features]
    now: Callable[[Tensor], Tensor]
    before: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    step: int


class Penalty(nn.Module, ABC):
    """One scalar that is zero where nothing has changed, and of order one where what was known is lost.

    Each is normalised by what the untouched network gives on the same images, so that one weight serves backbones and data
    sets; a step's penalty is computed on its own batch, gathered over all processes, and never accumulated over micro-batches.

    Attributes:
        blocks: Blocks (from 1) whose `Features` it looks at besides the readout.
        uses_reference: Whether it looks at the untouched network's features at all.
    """

    blocks: tuple[int, ...] = ()
    uses_reference: bool = True

    @abstractmethod
    def forward(self, seen: Seen) -> Tensor:
        """The penalty, a scalar with gradients, before its weight and margin."""
