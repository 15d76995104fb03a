"""What a semi-supervised method works on: every image as one short vector, plain and in augmented views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Token:
    """Tokens of N images, and what makes them of features: z = ((x - mean) / scale) A.

    Attributes:
        mean_F: Mean of the features.
        scale_F: Their scale.
        axes_FD: A.
        z_ND: Of the plain images.
        views: Of augmented views of the same images, [N, D] each; may be empty.
    """

    mean_F: Tensor
    scale_F: Tensor
    axes_FD: Tensor
    z_ND: Tensor
    views: tuple[Tensor, ...] = ()

    def mean_over_views(self) -> Tensor:
        """[N, D]: the mean over an image's views, the plain one included."""
        return torch.stack([self.z_ND, *self.views]).mean(dim=0) if self.views else self.z_ND

    def rows(self, order_M: Tensor) -> Token:
        """The same for these images, in this order."""
        return Token(
            self.mean_F, self.scale_F, self.axes_FD, self.z_ND[order_M], tuple(view[order_M] for view in self.views)
        )
