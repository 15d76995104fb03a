"""Rules on weights during training: after each update they may be moved back towards where they started.

FTP and SPD are what `objectives.weight_space` says of one weight; here they are kept up through a training. Under LoRA they act on
B (see `methods.anchors`), which the papers, tuning whole weights, do not do: a reconstruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from keepsight.core import Config, Method, processes
from keepsight.methods.anchors import Anchored
from keepsight.objectives.classification import binary_cross_entropy, cross_entropy
from keepsight.objectives.weight_space import SMALLEST, Norm, Radius, change_norm, ftp_step, spd_step, towards


class FtpConfig(Config):
    """Settings of `Ftp`.

    Attributes:
        anneal: kappa: a gradient that asks for a smaller radius is multiplied by it; 0 never shrinks one.
        lr: Of the radii.
    """

    name: Literal["ftp"] = "ftp"
    anneal: float = Field(default=1.0, ge=0, le=1)
    lr: float = Field(default=1e-2, gt=0)


class SpdConfig(Config):
    """Settings of `Spd`.

    Attributes:
        strength: lambda: how much of a step away from the start is taken back where the gradient points to the start.
    """

    name: Literal["spd"] = "spd"
    strength: float = Field(default=1.0, ge=0)


class TpgmConfig(Config):
    """Settings of `learn_radii`.

    Attributes:
        steps: Of the radii, each on one batch of validation images.
        lr: Of their Adam.
        norm: Of the change of a weight: "mars" (every row by itself) or "frobenius".
    """

    name: Literal["tpgm"] = "tpgm"
    steps: int = Field(default=100, ge=1)
    lr: float = Field(default=1e-2, gt=0)
    norm: Norm = "mars"


RuleConfig = Annotated[FtpConfig | SpdConfig | TpgmConfig, Field(discriminator="name")]
"""The settings of any one rule, told apart by `name`."""


class Rule(nn.Module, ABC):
    """What happens to anchored weights around every update; its buffers are saved with a checkpoint."""

    @abstractmethod
    def before(self) -> None:
        """The gradients are there, the weights have not moved yet."""

    @abstractmethod
    def after(self) -> None:
        """The weights have moved, the gradients are still those of before."""


class Ftp(Rule):
    """Fast trainable projection: every weight has a radius, learned from the gradients of the training itself.

    Args:
        config: See `FtpConfig`.
        anchored: The weights, where they start.
    """

    steps: Tensor

    def __init__(self, config: FtpConfig, anchored: Sequence[Anchored]) -> None:
        super().__init__()
        self._config, self._anchored = config, list(anchored)
        for i, (_, theta, _) in enumerate(self._anchored):
            self.register_buffer(f"numbers_{i}", torch.zeros(4))  # radius, its moments, its updates
            self.register_buffer(f"direction_{i}", torch.zeros_like(theta))
        self.register_buffer("steps", torch.zeros(()))

    def before(self) -> None:
        """Nothing."""

    def after(self) -> None:
        """Project every weight that has a gradient."""
        for i, (_, theta, theta0) in enumerate(self._anchored):
            if theta.grad is None:
                continue
            numbers, direction = self._state(i)
            known = (
                Radius(numbers[0], numbers[1], numbers[2], int(numbers[3]), direction) if self.steps.item() else None
            )
            config = self._config
            with torch.no_grad():
                moved, radius = ftp_step(theta.detach(), theta0.to(theta), theta.grad, known, config.anneal, config.lr)
                theta.copy_(moved)
                direction.copy_(radius.direction)
                updates = radius.value.new_tensor(float(radius.updates))
                numbers.copy_(torch.stack([radius.value, radius.first, radius.second, updates]))
        self.steps += 1

    def _state(self, i: int) -> tuple[Tensor, Tensor]:
        numbers, direction = getattr(self, f"numbers_{i}"), getattr(self, f"direction_{i}")
        return numbers, direction


class Spd(Rule):
    """Selective projection decay: a weight whose gradient points back, while it is carried on, loses what the step added.

    Args:
        config: See `SpdConfig`.
        anchored: The weights, where they start.
    """

    def __init__(self, config: SpdConfig, anchored: Sequence[Anchored]) -> None:
        super().__init__()
        self._config, self._anchored = config, list(anchored)
        self._kept: list[Tensor] = []

    def before(self) -> None:
        """Keep the weights of before the update."""
        self._kept = [theta.detach().clone() for _, theta, _ in self._anchored]

    def after(self) -> None:
        """Move those back that the rule says."""
        with torch.no_grad():
            for (_, theta, theta0), before in zip(self._anchored, self._kept, strict=True):
                if theta.grad is not None:
                    theta.copy_(spd_step(theta.detach(), before, theta0.to(theta), theta.grad, self._config.strength))
        self._kept = []


def make_rule(config: FtpConfig | SpdConfig, anchored: Sequence[Anchored]) -> Rule:
    """The rule of these settings."""
    return Ftp(config, anchored) if isinstance(config, FtpConfig) else Spd(config, anchored)


def learn_radii(
    method: Method, anchored: Sequence[Anchored], batches: Callable[[int], tuple[Tensor, Tensor]], config: TpgmConfig
) -> list[float]:
    """TPGM (Tian et al. 2023, arXiv 2303.10720), once after a training: one radius a weight, learned on validation images, and
    every weight projected to within its radius of where it started, in place.

    Radii start at half of the longest row (a reconstruction), since a radius that cuts nothing has no gradient, and are kept at or
    above 1e-8.

    Args:
        method: Trained; the radii minimise the cross-entropy of its logits.
        anchored: Its weights.
        batches: Step -> validation images [B, 3, H, W], class indices [B].
        config: See `TpgmConfig`.

    Returns:
        The share of its length that each weight keeps.
    """
    asked = _CrossEntropy(method)
    names = {id(p): name for name, p in asked.named_parameters()}
    there = [(names[id(theta)], theta.detach().clone(), theta0.to(theta)) for _, theta, theta0 in anchored]
    lengths = [change_norm(theta - theta0, config.norm) for _, theta, theta0 in there]
    radii = torch.stack([length.max() / 2 for length in lengths]).clamp(min=SMALLEST).requires_grad_(True)
    optimizer = torch.optim.Adam([radii], lr=config.lr)
    method.eval()
    for step in range(config.steps):
        projected = {
            name: towards(theta, theta0, radius, config.norm)
            for (name, theta, theta0), radius in zip(there, radii, strict=True)
        }
        loss = functional_call(asked, projected, batches(step))
        radii.grad = processes.averaged(torch.autograd.grad(loss, radii)[0])
        optimizer.step()
        with torch.no_grad():
            radii.clamp_(min=SMALLEST)
    shares = []
    with torch.no_grad():
        for (_, theta, theta0), radius, (_, parameter, _) in zip(there, radii, anchored, strict=True):
            moved = towards(theta, theta0, radius, config.norm)
            parameter.copy_(moved)
            length = torch.linalg.vector_norm(theta - theta0).clamp(min=SMALLEST)
            shares.append(float(torch.linalg.vector_norm(moved - theta0) / length))
    return shares


class _CrossEntropy(nn.Module):
    """Of a method's logits (of classes, or of targets [B, K]), as a module, so that its weights can be replaced for one call."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """A scalar."""
        loss = cross_entropy if labels.ndim == 1 else binary_cross_entropy
        return loss(self.method.logits(inputs), labels)
