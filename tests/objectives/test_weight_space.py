"""Distances and rules on weights: references, gradients, ends, and what a rule promises about the distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keepsight.objectives.weight_space import (
    Radius,
    averaged_state,
    change_norm,
    ftp_step,
    interpolated,
    l2_sp,
    low_rank_norm,
    spd_step,
    squared_distance,
    towards,
)


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_l2_sp_is_the_squared_relative_change() -> None:
    pairs = [(weights(3, 4, seed=1), weights(3, 4)), (weights(5, seed=2), weights(5, seed=3))]
    flat, flat0 = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    torch.testing.assert_close(l2_sp(pairs), (flat - flat0).norm() ** 2 / flat0.norm() ** 2)
    torch.testing.assert_close(l2_sp([(10 * a, 10 * b) for a, b in pairs]), l2_sp(pairs))
    assert l2_sp([(b, b) for _, b in pairs]).item() == 0
    theta = pairs[0][0].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: l2_sp([(t, pairs[0][1])]), (theta,))
    (gradient,) = torch.autograd.grad(squared_distance([(theta, pairs[0][1])]), theta)
    torch.testing.assert_close(gradient, 2 * (theta.detach() - pairs[0][1]))
    assert torch.isfinite(l2_sp([(torch.ones(2), torch.zeros(2))]))


@pytest.mark.parametrize(("r", "c", "d"), [(2, 9, 8), (6, 4, 5)], ids=["through the factors", "through BA"])
def test_the_norm_of_ba_without_ba(r: int, c: int, d: int) -> None:
    a, b = weights(r, c).requires_grad_(True), weights(d, r, seed=1).requires_grad_(True)
    torch.testing.assert_close(low_rank_norm(a, b, 2.5), torch.linalg.matrix_norm(2.5 * b @ a).square())
    assert torch.autograd.gradcheck(lambda a, b: low_rank_norm(a, b, 2.5), (a, b))
    # It holds the product: another factorisation of the same BA has the same norm, and B = 0 has none whatever A is.
    torch.testing.assert_close(low_rank_norm(3 * a, b / 3), low_rank_norm(a, b))
    assert low_rank_norm(a, torch.zeros_like(b)).item() == 0


def test_interpolation_is_exact_at_its_ends_and_linear_between() -> None:
    generator = torch.Generator().manual_seed(0)
    state0, state1 = ({"w": torch.randn(50, generator=generator), "n": torch.tensor(i)} for i in (3, 7))
    for alpha, end in ((0, state0), (1, state1)):
        found = interpolated(state0, state1, alpha)
        assert all(torch.equal(found[name], end[name]) for name in end)
        found["w"].zero_()
        assert end["w"].any(), "the ends are not shared"
    torch.testing.assert_close(interpolated(state0, state1, 0.3)["w"], 0.7 * state0["w"] + 0.3 * state1["w"])
    assert [interpolated(state0, state1, alpha)["n"].item() for alpha in (0.4, 0.6)] == [3, 7]
    with pytest.raises(ValueError, match="differ in n"):
        interpolated(state0, {"w": state1["w"]}, 0.5)
    with pytest.raises(ValueError, match="differ in w"):
        interpolated(state0, state1 | {"w": torch.zeros(3)}, 0.5)


def test_a_soup_is_the_mean() -> None:
    states = [{"w": weights(4, seed=seed).half(), "n": torch.tensor(seed)} for seed in range(3)]
    found = averaged_state(iter(states))
    assert found["w"].dtype == torch.float16
    torch.testing.assert_close(found["w"], torch.stack([s["w"].double() for s in states]).mean(0).half())
    assert found["n"].item() == 0
    assert torch.equal(averaged_state([states[1]])["w"], states[1]["w"])
    with pytest.raises(ValueError, match="at least one"):
        averaged_state([])
    with pytest.raises(ValueError, match="differ"):
        averaged_state([states[0], {"w": states[0]["w"]}])


@pytest.mark.parametrize("norm", ["frobenius", "mars"])
@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 2, 2)])
def test_projection_keeps_within_the_radius_and_leaves_what_is_inside(shape: tuple[int, ...], norm: str) -> None:
    theta, theta0 = weights(*shape, seed=1), weights(*shape)
    found = towards(theta, theta0, 0.7, norm)  # type: ignore[arg-type]
    lengths = change_norm(found - theta0, norm)  # type: ignore[arg-type]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.7))
    assert torch.equal(towards(theta, theta0, 1e3, norm), theta)  # type: ignore[arg-type]
    assert torch.equal(towards(theta0, theta0, 0.7, norm), theta0)  # type: ignore[arg-type]
    torch.testing.assert_close(towards(theta, theta0, 0.0, norm), theta0)  # type: ignore[arg-type]
    if norm == "frobenius":
        assert lengths.item() == pytest.approx((found - theta0).norm().item())
    radius = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: towards(theta, theta0, r, norm), (radius,))  # type: ignore[arg-type]


def test_mars_projects_row_by_row() -> None:
    theta = torch.tensor([[3.0, -1.0], [0.1, 0.1]])
    torch.testing.assert_close(towards(theta, torch.zeros(2, 2), 2.0, "mars"), torch.tensor([[1.5, -0.5], [0.1, 0.1]]))


def test_ftp_starts_at_theta0_and_opens_while_the_loss_falls_outwards() -> None:
    theta0, target = weights(3, 4), weights(3, 4) + 1
    theta, state = theta0.clone(), None
    radii = []
    for _ in range(300):
        gradient = theta - target
        theta, state = ftp_step(theta - 0.05 * gradient, theta0, gradient, state, lr=0.05)
        assert change_norm(theta - theta0, "mars").max() <= state.value * (1 + 1e-9) + 1e-12
        radii.append(state.value.item())
    assert radii[0] == pytest.approx(1e-8)
    assert radii[1] == pytest.approx(0.05 * 1, rel=1e-3)  # Adam's first step is its learning rate
    # Nothing holds it back: the loss is least at the target, four units of row norm away.
    assert radii[-1] == pytest.approx(4, rel=0.05)
    torch.testing.assert_close(theta, target, atol=0.1, rtol=0)


def test_ftp_shrinks_against_the_gradient_unless_annealing_forbids() -> None:
    theta0 = torch.zeros(2, 2)
    out = torch.ones(2, 2)
    state = Radius(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0), 0, out / 2)
    shrunk = ftp_step(out, theta0, out, state)[1].value
    kept = ftp_step(out, theta0, out, state, anneal=0.0)[1].value
    grown = ftp_step(out, theta0, -out, state)[1].value
    assert shrunk.item() == pytest.approx(0.99)
    assert kept.item() == 1
    assert grown.item() == pytest.approx(1.01)


def test_spd_decays_only_what_goes_on_against_the_gradient() -> None:
    theta0 = torch.zeros(2)
    before, after = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    back = torch.tensor([1.0, 1.0])
    torch.testing.assert_close(spd_step(after, before, theta0, back), before)  # the distance does not grow
    torch.testing.assert_close(spd_step(after, before, theta0, back, 0.5), torch.tensor([4.5, 6.0]))
    assert torch.equal(spd_step(after, before, theta0, back, 0.0), after)
    assert torch.equal(spd_step(after, before, theta0, -back), after), "the gradient agrees: free"
    assert torch.equal(spd_step(before, after, theta0, back), before), "it comes nearer already"
    assert torch.equal(spd_step(before, theta0, theta0, back), before), "the first step is free"
    assert torch.equal(spd_step(theta0, theta0, theta0, back), theta0)
