"""One step's data: a labelled and an unlabelled stream of fixed size, never one batch with masked labels."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from keepsight.core.scene import Target, Task


@dataclass(frozen=True, slots=True)
class Batch:
    """What `Method.losses` gets.

    Attributes:
        inputs: Labelled images [B, C, H, W], or cached features [B, F] of a frozen backbone.
        labels: Class indices [B], int64; in multi-label data targets [B, K], int8.
        unlabelled: Unlabelled inputs [U, ...] of the same kind; U is 0 for methods that do not use them.
        strong: A second, more strongly augmented view [U, ...] of the same unlabelled images; [0] where the source gives none.
        rows: Where the unlabelled images stand [U] in the source's list of them, int64; [0] where the source does not say.
        reference: Unlabelled images [R, 3, H, W] of other content, on which retention penalties look; [0] without any.
        targets: For task heads, of each labelled image; then `labels` is [0].
        task: The task head that learns from this batch.
    """

    inputs: Tensor
    labels: Tensor
    unlabelled: Tensor
    strong: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    reference: Tensor = field(default_factory=lambda: torch.empty(0))
    targets: tuple[Target, ...] = ()
    task: Task | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved: dict[str, Any] = {
            part.name: value.to(device)
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), Tensor)
        }
        return replace(self, **moved, targets=tuple(target.to(device) for target in self.targets))
