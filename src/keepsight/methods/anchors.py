"""The weights of a backbone that are trained, each with where it started: what weight rules move. Knows no rule.

A whole weight theta starts at its value theta0. Under LoRA the change of a weight is scale B A, and nothing at the start, since B
is zero: theta is B, and theta0 = 0. A row of B scales a row of the change and <dL/dB, B> = <dL/dW, scale B A>, so that what pulls
B to zero pulls the weight to where it started. The factor A starts at random and has no anchor.
"""

from __future__ import annotations

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from keepsight.core import UserError
from keepsight.methods.encoder import TunedBackbone

Anchored = tuple[str, nn.Parameter, Tensor]
"""Name within the backbone, theta, theta0."""


def anchors(encoder: TunedBackbone) -> list[Anchored]:
    """Every trained weight of the backbone with its start; call it before the training.

    Raises:
        UserError: What is trained was not there before (prompts, AdaptFormer), so that it has no start to be held to.
    """
    trained = {id(p): name for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    if not encoder.has_adapters:
        parameters = [p for p in encoder.backbone.parameters() if p.requires_grad]
        found: list[Anchored] = [(trained[id(p)], p, p.detach().clone()) for p in parameters]
    else:
        layers = [m for m in encoder.backbone.modules() if isinstance(m, LoraLinear) and not m.lora_variant]
        factors = [layer.lora_B[name].weight for layer in layers for name in layer.active_adapters]
        found = [(trained[id(b)], b, torch.zeros_like(b)) for b in factors if id(b) in trained]
        if 2 * len(found) != len(trained):
            found = []
    if not found:
        raise UserError(
            "Weight rules hold weights to where they started, and this adapter adds some that started nowhere: use them with full "
            "fine-tuning, biases or plain LoRA."
        )
    return found


def pairs(anchored: list[Anchored]) -> dict[str, tuple[Tensor, Tensor]]:
    """(theta, theta0) by name."""
    return {name: (theta, theta0) for name, theta, theta0 in anchored}
