"""One step's data: a labelled and an unlabelled stream of fixed size, never one batch with masked labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What `Method.losses` gets.

    Attributes:
        inputs: Labelled images [B, C, H, W], or cached features [B, F] of a frozen backbone.
        labels: Class indices [B], int64.
        unlabelled: Unlabelled inputs [U, ...] of the same kind; U is 0 for methods that do not use them.
    """

    inputs: Tensor
    labels: Tensor
    unlabelled: Tensor
