"""Distances between weights, and rules that keep weights near the ones they started from. Pure functions.

theta are weights now, theta0 the ones they started from. Under LoRA the weight changes by BA: its distances are those of BA, never
of the factors, of which A starts at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.objectives.pairs import full_precision

Norm = Literal["frobenius", "mars"]
"""Of a change of weights: of the whole tensor, or the sum of absolute values of each row (of which MARS takes the greatest)."""

SMALLEST = 1e-8
"""Of a radius and of what is divided by, as in the published code of TPGM and FTP."""


def squared_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """sum ||theta - theta0||^2 over (theta, theta0)."""
    # Keeps no difference in memory for the backward pass, unlike (theta - theta0).square().
    return torch.stack([F.mse_loss(theta, theta0, reduction="sum") for theta, theta0 in pairs]).sum()


def squared_length(weights: Iterable[Tensor]) -> Tensor:
    """sum ||theta||^2."""
    return torch.stack([w.detach().square().sum() for w in weights]).sum()


def l2_sp(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """sum ||theta - theta0||^2 / sum ||theta0||^2 over all pairs: the squared relative change of the weights.

    L2-SP (Li et al. 2018, arXiv 1802.01483) is alpha/2 sum ||theta - theta0||^2. The quotient lets one weight serve networks
    of any size and scale: the paper's alpha is 2 lambda / sum ||theta0||^2. It is small (a fine-tuned network's is about 1e-4).

    Example:
        >>> l2_sp([(torch.tensor([1.5]), torch.tensor([1.0]))]).item()
        0.25
    """
    listed = list(pairs)
    return squared_distance(listed) / squared_length(theta0 for _, theta0 in listed).clamp(min=SMALLEST)


def low_rank_norm(a_RC: Tensor, b_DR: Tensor, scale: float = 1.0) -> Tensor:
    """||scale B A||_F^2 of the change that LoRA makes to a weight [D, C].

    = scale^2 <B^T B, A A^T>, which takes R^2 (C + D) products in place of the R C D that form BA; the cheaper one is taken.

    Example:
        >>> low_rank_norm(torch.ones(1, 3), torch.ones(2, 1), scale=2.0).item()
        24.0
    """
    (r, c), d = a_RC.shape, b_DR.shape[0]
    with full_precision(a_RC):
        if r * (c + d) < c * d:
            return scale**2 * ((b_DR.T @ b_DR) * (a_RC @ a_RC.T)).sum()
        return scale**2 * (b_DR @ a_RC).square().sum()


def interpolated(state0: Mapping[str, Tensor], state1: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) state0 + alpha state1, exactly the one or the other at 0 and 1: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903).

    What is not floating point (counters) comes from the nearer end.

    Raises:
        ValueError: The two differ in names or shapes.
    """
    _check_alike(state0, state1)
    if alpha in (0, 1):
        return {name: tensor.clone() for name, tensor in (state1 if alpha else state0).items()}

    def mixed(one: Tensor, other: Tensor) -> Tensor:
        if not one.is_floating_point():
            return (other if alpha >= 0.5 else one).clone()
        return torch.lerp(one, other, alpha)

    return {name: mixed(tensor, state1[name]) for name, tensor in state0.items()}


def between(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Trained states interpolated such that *weights* are: under LoRA A is that of the end, since B starts at zero.

    Example:
        >>> a, b = {"lora_B": torch.zeros(1)}, {"lora_B": torch.ones(1)}
        >>> between(a, b, 0.25)["lora_B"].item()
        0.25
    """
    anchored = {name: end[name] if ".lora_A." in name else tensor for name, tensor in start.items()}
    return interpolated(anchored, end, alpha)


def averaged_state(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several networks' weights, summed in float64: a uniform soup (Wortsman et al. 2022, arXiv 2203.05482).

    States may come from a generator: two are in memory at a time. What is not floating point comes from the first.

    Raises:
        ValueError: No state, or they differ in names or shapes.
    """
    count, sums, first = 0, dict[str, Tensor](), dict[str, Tensor]()
    for state in states:
        if not count:
            first = {name: tensor.clone() for name, tensor in state.items()}
            sums = {
                name: torch.zeros_like(t, dtype=torch.float64) for name, t in first.items() if t.is_floating_point()
            }
        _check_alike(first, state)
        for name, total in sums.items():
            total += state[name]
        count += 1
    if not count:
        raise ValueError("a soup needs at least one state")
    return first | {name: (total / count).to(first[name].dtype) for name, total in sums.items()}


def _check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    differing = sorted(one.keys() ^ other.keys()) or [n for n in one if one[n].shape != other[n].shape]
    if differing:
        raise ValueError(f"the states differ in {differing[0]} and {len(differing) - 1} more")


def change_norm(change: Tensor, norm: Norm) -> Tensor:
    """||.||_F [1, ...], or each row's sum of absolute values [D, 1, ...]; a vector is one row, as in the published code of TPGM."""
    if norm == "frobenius" or change.ndim < 2:
        power = 2 if norm == "frobenius" else 1
        length: Tensor = torch.linalg.vector_norm(change, ord=power)
        return length.reshape((1,) * change.ndim)
    return change.abs().sum(dim=tuple(range(1, change.ndim)), keepdim=True)


def towards(theta: Tensor, theta0: Tensor, radius: Tensor | float, norm: Norm = "frobenius") -> Tensor:
    """theta0 + min(1, radius / ||theta - theta0||) (theta - theta0): no further from theta0 than the radius.

    The projection of TPGM (Tian et al. 2023, arXiv 2303.10720), and of distance constraints before it (Gouk et al. 2021, MARS).
    With "mars" each row is scaled by itself; that is their closed form, not the Euclidean projection on the ball.
    Differentiable in the radius too (TPGM learns one for each layer on validation data).

    Example:
        >>> towards(torch.tensor([3.0, 4.0]), torch.zeros(2), 1.0).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    change = theta - theta0
    ratio = torch.as_tensor(radius, dtype=theta.dtype, device=theta.device) / change_norm(change, norm).clamp(
        min=SMALLEST
    )
    return torch.where(ratio >= 1, theta, theta0 + ratio.clamp(0, 1) * change)


@dataclass(frozen=True, slots=True)
class Radius:
    """What FTP remembers of one weight: the radius, its Adam moments and updates so far, and the last direction [as theta]."""

    value: Tensor
    first: Tensor
    second: Tensor
    updates: int
    direction: Tensor


def ftp_step(
    theta: Tensor,
    theta0: Tensor,
    gradient: Tensor,
    before: Radius | None,
    anneal: float = 1.0,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[Tensor, Radius]:
    """Fast trainable projection (Tian et al. 2023, arXiv 2310.19182, algorithm 1): the weights after this step, and its radius.

    The radius gamma of a weight is learned without validation data: with d = (theta - theta0) / ||theta - theta0|| (rows, MARS) of
    the step before, dL/dgamma = <gradient, d>; a positive one is multiplied by `anneal` (1 keeps it, 0 never shrinks the radius),
    Adam moves gamma by it, and gamma stays between 1e-8 and the greatest row norm. The first step goes back to theta0.

    After the published code; its Adam counts one more update in the bias correction than there was, ours does not.

    Args:
        theta: Where the optimizer's own step ended.
        theta0: Where the training started.
        gradient: That the step was made with, taken at the weights before it.
        before: What this function returned in the step before.
        anneal: kappa of the paper.
        lr: Of the radius.
        betas: Of its Adam.
    """
    change = theta - theta0
    lengths = change_norm(change, "mars").clamp(min=SMALLEST)
    zero = theta.new_zeros(())
    if before is None:
        radius = Radius(theta.new_tensor(SMALLEST), zero, zero, 0, change / lengths)
        return towards(theta, theta0, radius.value, "mars"), radius
    slope = (gradient * before.direction).sum()
    slope = torch.where(slope > 0, slope * anneal, slope)
    updates = before.updates + 1
    first = betas[0] * before.first + (1 - betas[0]) * slope
    second = betas[1] * before.second + (1 - betas[1]) * slope.square()
    moved = first / (1 - betas[0] ** updates) / ((second / (1 - betas[1] ** updates)).sqrt() + SMALLEST)
    value = (before.value - lr * moved).clamp(min=SMALLEST).minimum(lengths.max())
    return towards(theta, theta0, value, "mars"), Radius(value, first, second, updates, change / lengths)


def spd_step(theta: Tensor, theta_before: Tensor, theta0: Tensor, gradient: Tensor, strength: float = 1.0) -> Tensor:
    """Selective projection decay (Tian et al. 2024, arXiv 2411.01713): the weights after this step.

    Where -<gradient, theta_before - theta0> < 0 (the gradient points back while the weights are under way), the weights decay:
    theta - strength r (theta - theta0), with r = max(0, 1 - ||theta_before - theta0|| / ||theta - theta0||) the share of the way
    that this step added. So strength 1 keeps the distance from growing. A plain gradient step that meets the condition comes nearer
    by itself (r = 0): the rule acts where momentum carries the weights on against the gradient.

    Condition and ratio are the paper's; the published code itself was not at hand: a reconstruction.

    Args:
        theta: Where the optimizer's own step ended.
        theta_before: Where it began.
        theta0: Where the training started.
        gradient: Taken at `theta_before`.
        strength: lambda of the paper.
    """
    change, change_before = theta - theta0, theta_before - theta0
    length = torch.linalg.vector_norm(change)
    ratio = (1 - torch.linalg.vector_norm(change_before) / length.clamp(min=SMALLEST)).clamp(0, 1)
    back = (gradient * change_before).sum() > 0
    return torch.where(back, theta - strength * ratio * change, theta)
