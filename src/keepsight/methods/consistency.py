"""Tuning without labels: an augmented image keeps the features that the untouched network gives the plain one. Knows no class.

It is the control of retention: as many steps on as many images, of which nothing is learnt that a label could say.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from keepsight.core import Batch, Method
from keepsight.methods.encoder import TunedBackbone
from keepsight.methods.reference import Reference


class Consistency(Method):
    """mean ||f(augmented) - f0(plain)||^2 / mean ||f0 - batch mean||^2, with f0 the network as it is now.

    Args:
        encoder: What is tuned.
        head: Kept as it is: nothing trains it.
    """

    def __init__(self, encoder: TunedBackbone, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head.requires_grad_(False)
        self.reference = Reference(encoder)

    def logits(self, inputs: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K] of the head it was given."""
        logits: Tensor = self.head(self.encoder.read(inputs))
        return logits

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """{"consistency"}; `Batch.reference` holds the same images as `Batch.inputs`, plain."""
        del phase, step
        target_BF = self.reference.features(batch.reference).float()
        scale = (target_BF - target_BF.mean(dim=0)).square().sum(dim=1).mean().clamp(min=1e-8)
        x_BF = self.encoder(batch.inputs).float()
        return {"consistency": (x_BF - target_BF).square().sum(dim=1).mean() / scale}

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Layer-wise decay of the backbone's trained weights."""
        return self.encoder.lr_scales()

    def after_first_step(self) -> None:
        """Every adapter must have a gradient."""
        self.encoder.after_first_step()
