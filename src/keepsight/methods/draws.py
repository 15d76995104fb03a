"""Random numbers that are a function of the seed, the step and the place in the global batch, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from keepsight.core import Target, processes


def of_step(targets: Sequence[Target]) -> Generator | None:
    """The generator (on the CPU) of what all images of a step have in common; None, torch's global one, outside of a run."""
    draw = targets[0].draw if targets else None
    return None if draw is None else Generator().manual_seed(draw[0])


def of_image(target: Target) -> Generator | None:
    """The generator (on the CPU) of what is drawn for one image alone; None, torch's global one, outside of a run."""
    return None if target.draw is None else Generator().manual_seed(target.draw[0] * 1_000_003 + target.draw[1] + 1)


class Draws:
    """The draws of one phase of one step.

    Each draw is made for the global batch, of which a process takes the rows that `train.batches` gives it: two processes see
    what one would, and a resumed run what an uninterrupted one saw.

    Args:
        seed: Of the method.
        step: Of the training.
        stream: Number of the phase.
    """

    def __init__(self, seed: int, step: int, stream: int = 0) -> None:
        self._generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 7 + stream)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers; the first length is this process's share."""
        whole = torch.randn(shape[0] * processes.count(), *shape[1:], generator=self._generator)
        return whole[processes.index() :: processes.count()]

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1); the first length is this process's share."""
        whole = torch.rand(shape[0] * processes.count(), *shape[1:], generator=self._generator)
        return whole[processes.index() :: processes.count()]

    def classes(self, count: int, prior_K: Tensor) -> Tensor:
        """Class indices [count] drawn from a prior, as evenly as it allows: systematic sampling, so that a batch is balanced."""
        total = count * processes.count()
        places = (torch.arange(total) + torch.rand(1, generator=self._generator)) / total
        drawn = torch.searchsorted(prior_K.cpu().double().cumsum(0), places.double()).clamp(max=len(prior_K) - 1)
        drawn = drawn[torch.randperm(total, generator=self._generator)]
        return drawn[processes.index() :: processes.count()]

    def dropped(self, x: Tensor, share: float) -> Tensor:
        """x with `share` of its entries zero and the others scaled up."""
        if share == 0:
            return x
        kept = (self.uniform(*x.shape) >= share).to(x)
        return x * kept / (1 - share)
