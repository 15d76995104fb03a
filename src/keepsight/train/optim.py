"""Optimizers, and schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from keepsight.core import Config


class OptimConfig(Config):
    """One optimizer.

    Attributes:
        name: Update rule.
        lr: Peak learning rate.
        weight_decay: Decoupled (AdamW) or L2 (SGD); not applied to biases, norms and other vectors.
        momentum: SGD momentum.
        betas: AdamW moment decays.
        warmup: Share of the steps with linearly rising learning rate.
        schedule: ``cosine`` falls to zero at the last step; ``constant`` stays.
        clip: Largest gradient norm, or None.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = Field(default=1.0, gt=0)


def lr_factor(config: OptimConfig, step: int, total: int) -> float:
    """Learning rate at `step` (from 0) of `total`, as a share of the peak.

    Warm-up over w = ceil(warmup * total) steps: (step + 1) / (w + 1). Then 1, or 0.5 (1 + cos(pi (step - w) / (total - w))).

    Example:
        >>> [round(lr_factor(OptimConfig(warmup=0.5), s, 4), 3) for s in range(4)]
        [0.333, 0.667, 1.0, 0.5]
    """
    warm = math.ceil(config.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def make_optimizer(
    parameters: list[nn.Parameter],
    config: OptimConfig,
    scales: Mapping[nn.Parameter, float] | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """The optimizer over matrices (with weight decay) and vectors (without).

    Args:
        parameters: What it updates.
        config: The update rule.
        fused: One pass over the weights a step; updating 22 M weights one operation after another took a tenth of a whole
            step on a CPU. Not for parameters that are cut into shares.
        scales: Factor on the learning rate of each parameter; 1 where absent (`Method.lr_scales`).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decay = config.weight_decay if p.ndim >= 2 else 0.0
        groups.setdefault((decay, (scales or {}).get(p, 1.0)), []).append(p)
    listed = [{"params": ps, "weight_decay": decay, "scale": scale} for (decay, scale), ps in groups.items()]
    if config.name == "sgd":
        return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate: `lr` times its scale for each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
