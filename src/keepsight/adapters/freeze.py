"""Which weights of a backbone a readout reaches, and freezing the rest. Knows no method."""

from __future__ import annotations

import torch

from keepsight.core import Backbone, Readout


def reached_parameters(backbone: Backbone, readout: Readout) -> set[str]:
    """Names (within `backbone.network`) of the parameters that get a gradient through this readout.

    Found by one backward pass on a blank image, so that it holds for every architecture. A readout at block 8 of 12
    does not reach blocks 9 to 12: they are neither run nor trained.
    """
    parameters = dict(backbone.network.named_parameters())
    frozen = {name: p.requires_grad for name, p in parameters.items()}
    was_training = backbone.training
    backbone.eval()
    size = backbone.preprocessing.size
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        device = next(iter(parameters.values())).device
        with torch.enable_grad():
            out = readout.read(backbone(torch.zeros(2, 3, size, size, device=device), readout.blocks))
            gradients = torch.autograd.grad(out.sum(), list(parameters.values()), allow_unused=True)
    finally:
        for name, p in parameters.items():
            p.requires_grad_(frozen[name])
        backbone.train(was_training)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def freeze_all(backbone: Backbone) -> None:
    """No weight is trained."""
    backbone.requires_grad_(False)


def train_reached(backbone: Backbone, readout: Readout) -> None:
    """Full fine-tuning: every weight the readout reaches is trained, the rest is frozen."""
    reached = reached_parameters(backbone, readout)
    for name, p in backbone.network.named_parameters():
        p.requires_grad_(name in reached)
