"""What every retention penalty promises (`core.Penalty`), over all of them and their settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from keepsight.core import UserError
from keepsight.methods.penalties import NAMES, parse_penalty
from launching import launch
from penalty_cases import CASES, Case, World

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)


def test_every_penalty_is_here() -> None:
    assert {parse_penalty(case.text).name for case in CASES} == set(NAMES)


@every
def test_zero_where_nothing_changed_or_said_otherwise(case: Case) -> None:
    world = World(moved=0)
    value = case.penalty(world)(world.seen())
    assert value.shape == ()
    if case.zero:
        assert value.item() == pytest.approx(0, abs=2e-6)
        # And nothing pulls there.
        assert world.gradient(value).abs().max() < 2e-3
    else:
        assert value.item() > 1e-6


@every
def test_positive_after_a_change_with_finite_gradients_to_the_network(case: Case) -> None:
    world = World()
    value = case.penalty(world)(world.seen())
    assert 1e-5 < value.item() < 1e3
    gradient = world.gradient(value)
    assert gradient.isfinite().all()
    assert gradient.any()


@every
def test_a_step_towards_less_of_it_is_less(case: Case) -> None:
    world = World()
    penalty = case.penalty(world)
    value = penalty(world.seen())
    gradient = world.gradient(value)
    length = min(0.1 * value.item() / gradient.norm().item(), 1e-2)
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(world.network.parameters()) - length * gradient / gradient.norm(),
        world.network.parameters(),
    )
    if "running" in case.text:
        penalty = case.penalty(world)  # without the memory of the first step
    assert penalty(world.seen()).item() < value.item()


@every
def test_the_same_step_gives_the_same_value_and_draws_change_with_the_step(case: Case) -> None:
    world = World()
    first, again = (case.penalty(world)(world.seen()).item() for _ in range(2))
    assert first == again
    other = case.penalty(world)(world.seen(step=1)).item()
    assert (other != first) == (parse_penalty(case.text).name in ("r3f", "r4f", "pdr", "masked-counterfactual"))


@every
def test_blind_to_the_scale_of_both_networks_features(case: Case) -> None:
    # The head divides by the scale: predictions are the same, and a penalty on them must be.
    values = [case.penalty(world := World(scale=scale))(world.seen()).item() for scale in (1.0, 10.0)]
    assert values[1] == pytest.approx(values[0], rel=1e-3)


@every
def test_small_batches_work_or_are_refused_in_one_sentence(case: Case) -> None:
    world = World(images=case.least)
    value = case.penalty(world)(world.seen())
    assert value.isfinite()
    assert world.gradient(value).isfinite().all()
    if case.least > 1:
        world = World(images=case.least - 1)
        with pytest.raises(UserError, match=f"at least {case.least} of them, but the step has {case.least - 1}"):
            case.penalty(world)(world.seen())


@every
def test_it_looks_at_the_reference_only_if_it_says_so(case: Case) -> None:
    world = World()
    penalty = case.penalty(world)
    seen, other = world.seen(), World(moved=1.0)
    misled = dataclasses.replace(
        seen,
        x0_BF=other.seen().x_BF.detach(),
        layers0=other.layers(other.network, seen.inputs),
        before=lambda images: other.read(other.network, images),
    )
    differs = case.penalty(world)(misled).item() != case.penalty(world)(seen).item()
    assert differs == penalty.uses_reference


@every
def test_states_survive_saving(case: Case) -> None:
    world = World()
    penalty, other = case.penalty(world), case.penalty(world)
    penalty(world.seen())
    other.load_state_dict(penalty.state_dict())
    assert other(world.seen(step=1)).item() == penalty(world.seen(step=1)).item()
    owned = {id(p) for p in world.network.parameters()}
    assert not owned & {id(p) for p in penalty.parameters()}, "the network's weights are not a penalty's"


SCRIPT = """
import sys, torch
from penalty_cases import CASES, World
from keepsight.core import processes

torch.distributed.init_process_group("gloo")
found = {}
for case in CASES:
    world = World(images=8)
    value = case.penalty(world)(world.seen())
    gradient = world.gradient(value)
    torch.distributed.all_reduce(gradient)  # what DDP does
    found[case.text] = torch.cat([value.detach()[None], gradient / processes.count()])
torch.save(found, f"{sys.argv[1]}/{processes.index()}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch(SCRIPT, tmp_path / "two", 2, str(tmp_path / "two"))
    two = [torch.load(tmp_path / "two" / f"{index}.pt", weights_only=True) for index in (0, 1)]
    for case in CASES:
        world = World(images=8)
        value = case.penalty(world)(world.seen())
        one = torch.cat([value.detach()[None], world.gradient(value)])
        for found in two:
            torch.testing.assert_close(
                found[case.text], one, rtol=1e-3, atol=1e-5, msg=lambda said, case=case: f"{case.text}: {said}"
            )
