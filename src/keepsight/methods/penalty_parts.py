"""What the retention penalties share: what they are told at construction, their settings' common part, and one step's features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from keepsight.core import Config, Seen, UserError, processes

if TYPE_CHECKING:
    from peft import PeftModel  # importing it takes longer than all the rest


@dataclass(frozen=True, slots=True)
class About:
    """What a penalty may need to know when it is made.

    Attributes:
        features: Length F of the read-out features.
        depth: The highest block that the readout reaches: those above it are not run.
        classes: K.
        seed: Of what is drawn in a step, with the step's number.
        head: Read-out features [B, F] -> logits [B, K] as the training starts; copied where it is needed.
        pairs: (weight that is trained, its value at the start) by name, under full tuning; the second is the one copy there is.
        peft: The network with its adapters, where some are trained.
        pool_NF: Features of the pool by the untouched network.
    """

    features: int
    depth: int
    classes: int
    seed: int
    head: nn.Module | None = None
    pairs: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    peft: PeftModel | None = None
    pool_NF: Tensor | None = None


class RetentionConfig(Config):
    """What every penalty's settings begin with.

    Attributes:
        weight: Lambda: the penalty is multiplied by it, after the margin.
        margin: What is let pass: relu(penalty - margin) is minimised.
    """

    weight: float = Field(default=1.0, ge=0)
    margin: float = Field(default=0.0, ge=0)


def precise(x: Tensor) -> Tensor:
    """At least float32: a difference of bfloat16 features is mostly rounding."""
    return x if x.dtype == torch.float64 else x.float()


def global_batch(seen: Seen, name: str, least: int) -> tuple[Tensor, Tensor]:
    """Features now and before [P B, F] of all processes' images.

    Raises:
        UserError: Fewer images than this penalty can compare.
    """
    x_BF, x0_BF = processes.gathered(precise(seen.x_BF)), processes.gathered(precise(seen.x0_BF))
    enough(len(x_BF), name, least)
    return x_BF, x0_BF


def enough(images: int, name: str, least: int) -> None:
    """Raise UserError where a step has fewer images than this penalty can compare."""
    if images < least:
        raise UserError(
            f"The penalty {name} compares the images of one step with each other and needs at least {least} of them, "
            f"but the step has {images}: use a larger batch size."
        )


def resolved_blocks(blocks: tuple[int, ...], depth: int, name: str) -> tuple[int, ...]:
    """Blocks from 1 to depth, negative ones counted from the last; none given is four spread over the depth, the last among them.

    Example:
        >>> resolved_blocks((), 12, "ldifs"), resolved_blocks((-1, 2), 12, "ldifs")
        ((3, 6, 9, 12), (12, 2))
    """
    chosen = blocks or tuple(dict.fromkeys(max(1, round(depth * quarter / 4)) for quarter in (1, 2, 3, 4)))
    found = tuple(b if b > 0 else depth + 1 + b for b in chosen)
    if any(not 1 <= b <= depth for b in found) or len(set(found)) != len(found):
        raise UserError(
            f"The penalty {name} was given the blocks {'+'.join(map(str, blocks))}, but the readout reaches blocks 1 to {depth}: "
            "name each of them at most once."
        )
    return found
