"""The penalty on weights: L2-SP, on the change BA under LoRA. It never looks at an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from keepsight.core import Penalty, Seen, UserError
from keepsight.methods.penalty_parts import About, RetentionConfig
from keepsight.objectives.weight_space import low_rank_norm, squared_distance, squared_length

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear as LoraLinear


class L2SpConfig(RetentionConfig):
    """Settings of `L2Sp`.

    Attributes:
        weight: Large, because the squared relative change of weights is small (about 1e-4) where much is forgotten.
    """

    name: Literal["l2-sp"] = "l2-sp"
    weight: float = Field(default=3e6, ge=0)


class L2Sp(Penalty):
    """sum ||theta - theta0||^2 / sum ||theta0||^2 over the trained weights; under LoRA theta - theta0 = scale B A.

    Args:
        config: See `L2SpConfig`.
        about: `pairs`, or `peft` with LoRA on linear layers.
    """

    uses_reference = False

    def __init__(self, config: L2SpConfig, about: About) -> None:
        super().__init__()
        self.config = config
        # Lists hide these from nn.Module: they are the network's own, and theta0 is made again at every start.
        self._pairs = list(about.pairs.values())
        self._adapted = [] if about.peft is None else _adapted(about.peft)
        if any(layer.lora_variant for layer in self._adapted):
            raise UserError(
                "The penalty l2-sp knows plain LoRA, whose change of a weight is BA, but these adapters do more than that."
            )
        if not self._pairs and not self._adapted:
            raise UserError(
                "The penalty l2-sp holds weights to where they started, but this method trains none that it knows."
            )
        weights = [theta0 for _, theta0 in self._pairs] + [layer.get_base_layer().weight for layer in self._adapted]
        self._length0 = squared_length(weights).clamp(min=1e-8)

    def forward(self, seen: Seen) -> Tensor:
        """The squared relative change."""
        del seen
        changes = [
            low_rank_norm(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
            for layer in self._adapted
            for name in layer.active_adapters
        ]
        if self._pairs:
            # Once: the network may have been moved to its device after this was made.
            self._pairs = [(theta, theta0.to(theta.device)) for theta, theta0 in self._pairs]
            changes.append(squared_distance(self._pairs))
        total = torch.stack([change.float() for change in changes]).sum()
        return total / self._length0.to(total)


def _adapted(peft: PeftModel) -> list[LoraLinear]:
    """The layers with LoRA."""
    from peft.tuners.lora import Linear as LoraLinear

    return [module for module in peft.modules() if isinstance(module, LoraLinear)]
