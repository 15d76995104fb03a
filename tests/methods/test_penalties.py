"""Single penalties: what they are written as, what they hold, what they draw and what they refuse."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn

from conftest import TinyBackbone
from keepsight.adapters.lora import LoraConfig, add_lora, merge_lora
from keepsight.core import Readout, UserError
from keepsight.methods.penalties import NAMES, About, make_penalty, parse_penalty
from keepsight.methods.penalties_feature import RiftCov, RiftCovConfig
from keepsight.methods.penalties_output import MaskedCounterfactual, MaskedCounterfactualConfig
from keepsight.objectives.smoothness import symmetric_kl
from penalty_cases import FEATURES, World


def make(text: str, world: World, **about: Any) -> Any:
    return make_penalty(parse_penalty(text), dataclasses.replace(world.about(), **about))


def test_the_names_are_those_of_the_issue() -> None:
    assert set(NAMES) == {
        "rift-cov",
        "cka",
        "procrustes",
        "l2-sp",
        "distill",
        "ldifs",
        "lwf",
        "delta",
        "bss",
        "r3f",
        "r4f",
        "pdr",
        "masked-counterfactual",
    }


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_are_told_apart_by_name(name: str) -> None:
    config = parse_penalty(f"{name}:0.5:margin=0.25")
    assert (config.name, config.weight, config.margin) == (name, 0.5, 0.25)
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_what_is_written_is_what_is_meant() -> None:
    assert parse_penalty("rift-cov:1:q=free:source=running") == RiftCovConfig(weight=1, q="free", source="running")
    assert parse_penalty(" rift-cov : q = free ") == RiftCovConfig(q="free")
    found = parse_penalty("ldifs:blocks=4+-1")
    assert found.name == "ldifs"
    assert found.blocks == (4, -1)
    biased = parse_penalty("cka:debiased=false")
    assert biased.name == "cka"
    assert not biased.debiased


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("procrustus", r"no retention penalty 'procrustus': did you mean procrustes\?"),
        ("rift_cov", r"did you mean rift-cov\?"),
        ("zzz", "there are rift-cov, cka, procrustes"),
        ("", "there are rift-cov"),
        ("procrustes:much", "wrong value for weight: .*number"),
        ("procrustes:-1", "wrong value for weight: .*greater than or equal to 0"),
        ("rift-cov:1:q=some", "wrong value for q: .*'identity', 'free' or 'learned'"),
        ("rift-cov:1:sourse=batch", r"at 'sourse=batch': did you mean source=\?"),
        ("rift-cov:q=free:2", "at '2': its settings are weight, margin"),
        ("rift-cov:1:weight=2", "sets weight twice"),
        ("rift-cov:name=cka", "at 'name=cka'"),
        ("ldifs:blocks=4+x", "wrong value for blocks: .*integer"),
    ],
)
def test_what_is_not_understood_is_said_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_penalty(text)
    assert "\n" not in str(error.value)


def test_blocks_are_spread_over_the_depth_unless_chosen() -> None:
    world = World()
    assert make("ldifs", world, depth=12).blocks == (3, 6, 9, 12)
    assert make("delta", world, depth=2).blocks == (1, 2)
    assert make("ldifs:blocks=-1+1", world, depth=12).blocks == (12, 1)
    for blocks in ("13", "-13", "0", "2+2", "12+-1"):
        with pytest.raises(UserError, match=r"ldifs was given the blocks .* reaches blocks 1 to 12"):
            make(f"ldifs:blocks={blocks}", world, depth=12)


def test_a_learned_rotation_finds_the_one_that_was_made() -> None:
    world = World(moved=0, images=30)
    skew = 0.3 * torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(0))
    seen = world.seen()
    turned = seen.x0_BF @ torch.linalg.matrix_exp(skew.tril(-1) - skew.tril(-1).T)
    seen = dataclasses.replace(seen, x_BF=turned)
    fixed, free, learned = (make(f"rift-cov:q={q}", world) for q in ("identity", "free", "learned"))
    start = learned(seen).item()
    assert start == pytest.approx(fixed(seen).item())
    assert start > 0.1
    assert free(seen).item() < 1e-6
    optimizer = torch.optim.Adam(learned.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        learned(seen).backward()
        optimizer.step()
    assert learned(seen).item() < 0.1 * start


def test_a_running_covariance_is_the_bias_corrected_mean_with_the_gradient_of_this_batch() -> None:
    world = World()
    penalty = make("rift-cov:source=running:momentum=0.5", world)
    assert isinstance(penalty, RiftCov)
    seen, other = world.seen(), World(moved=0.5).seen()
    single = make("rift-cov", world)
    # After one step it is this batch: value and gradient are those of the paired penalty.
    value = penalty(seen)
    torch.testing.assert_close(value, single(seen))
    torch.testing.assert_close(world.gradient(value), world.gradient(single(seen)), rtol=1e-3, atol=1e-5)
    penalty(other)

    def covariance(x: torch.Tensor) -> torch.Tensor:
        return torch.cov(x.detach().T, correction=0)

    expected = (0.25 * covariance(seen.x_BF) + 0.5 * covariance(other.x_BF)) / 0.75
    torch.testing.assert_close(penalty.running_FF / 0.75, expected)
    # Looking without training leaves it as it is.
    before = penalty.running_FF.clone()
    with torch.no_grad():
        penalty(seen)
    penalty.eval()(seen)
    assert torch.equal(penalty.running_FF, before)


def test_a_cached_covariance_warns_of_few_images_and_of_small_batches(caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(4000, FEATURES, generator=generator)
    world = World()
    with caplog.at_level(logging.WARNING, "keepsight"):
        make("rift-cov:source=cached", world, pool_NF=pool[:60])
        assert "estimated from 60 images" in caplog.text
        caplog.clear()
        penalty = make("rift-cov:source=cached", world, pool_NF=pool)
        assert not caplog.text
        for _ in range(2):
            found = penalty(dataclasses.replace(world.seen(), x_BF=pool[:8])).item()
        assert len(caplog.records) == 1
        said = float(caplog.text.split("even an unchanged one by about ")[1].split()[0])
    assert found == pytest.approx(said, rel=0.5)  # the warning's figure is what an unchanged batch costs
    for nothing in (None, pool[:1]):
        with pytest.raises(UserError, match="source=cached takes the covariance of the pool's features, but there"):
            make("rift-cov:source=cached", world, pool_NF=nothing)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_under_lora_l2_sp_holds_the_merged_change() -> None:
    backbone = TinyBackbone()
    before = {name: p.detach().clone() for name, p in backbone.network.named_parameters() if "block" in name}
    peft = add_lora(backbone, Readout(blocks=(2,)), LoraConfig(rank=2, alpha=6, targets="block"))
    world = World()
    penalty = make("l2-sp", world, pairs={}, peft=peft)
    assert penalty(world.seen()).item() == 0, "B is zero: nothing has changed, whatever A is"
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    value = penalty(world.seen())
    value.backward()
    gradients = [p.grad for name, p in peft.named_parameters() if "lora_" in name]
    assert all(g is not None and g.any() for g in gradients)
    merge_lora(backbone, peft)
    after = dict(backbone.network.named_parameters())
    kept = [name for name in before if name.endswith("weight")]
    change = sum((after[name] - before[name]).square().sum() for name in kept)
    length = sum(before[name].square().sum() for name in kept)
    torch.testing.assert_close(value, change / length)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_l2_sp_refuses_what_it_does_not_know() -> None:
    world = World()
    with pytest.raises(UserError, match="trains none that it knows"):
        make("l2-sp", world, pairs={})
    dora = get_peft_model(nn.Sequential(nn.Linear(4, 4)), PeftLoraConfig(r=2, target_modules=["0"], use_dora=True))
    with pytest.raises(UserError, match="plain LoRA"):
        make("l2-sp", world, pairs={}, peft=dora)


def test_lwf_keeps_the_head_of_the_start_and_needs_one() -> None:
    world = World()
    penalty = make("lwf", world)
    value = penalty(world.seen()).item()
    with torch.no_grad():
        world.head.head.weight_KF.zero_()
    assert penalty(world.seen()).item() == value
    assert not any(p.requires_grad for p in penalty.parameters())
    assert not penalty.train().head0.training
    with pytest.raises(UserError, match="no head"):
        make("lwf", world, head=None)


@pytest.mark.parametrize(("distribution", "largest"), [("normal", torch.inf), ("uniform", 0.1 * 3**0.5)])
def test_noise_has_the_size_it_says(distribution: str, largest: float) -> None:
    world = World(images=50)
    shown = []

    def now(images: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        return world.read(world.network, images)

    seen = dataclasses.replace(world.seen(), now=now)
    value = make(f"r3f:distribution={distribution}", world)(seen)
    noise = (shown[0] - seen.inputs) / seen.inputs.square().mean().sqrt()
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.abs().max().item() < largest * 1.001
    expected = symmetric_kl(world.head(world.read(world.network, shown[0])), world.head(seen.x_BF))
    torch.testing.assert_close(value, expected)


def test_r4f_adds_what_the_heads_spectral_norm_has_too_much() -> None:
    world = World()
    seen = world.seen()
    smooth = make("r3f", world)(seen)
    spread = (seen.x_BF - seen.x_BF.mean(0)).square().mean().sqrt()
    norm = torch.linalg.matrix_norm(world.head.head.weight_KF, 2) * spread
    assert norm > 1
    torch.testing.assert_close(make("r4f:steepness=2", world)(seen) - smooth, 2 * (norm - 1).square())
    torch.testing.assert_close(make("r4f:bound=1000", world)(seen), smooth)
    make("r4f:steepness=2:bound=0", world)(seen).backward()
    assert world.head.head.weight_KF.grad is not None


def test_masks_hide_their_share_and_change_with_the_step() -> None:
    about = About(features=4, depth=1, classes=2, seed=1)
    penalty = MaskedCounterfactual(MaskedCounterfactualConfig(share=0.25, cells=4), about)
    images = torch.ones(3, 3, 16, 16)
    masked = penalty.masked(images, 0)
    cells = masked.reshape(3, 3, 4, 4, 4, 4).mean(dim=(1, 3, 5))
    assert cells.unique().tolist() == [0, 1], "whole cells, in all channels"
    assert (cells == 0).sum(dim=(1, 2)).tolist() == [4, 4, 4]
    assert torch.equal(penalty.masked(images, 0), masked)
    assert not torch.equal(penalty.masked(images, 1), masked)
    assert not torch.equal(masked[0], masked[1])
    with pytest.raises(UserError, match="choose first_block=1"):
        penalty(dataclasses.replace(World().seen(), inputs=torch.zeros(2, 5, 4)))


def test_half_precision_features_are_compared_in_single_precision() -> None:
    world = World()
    seen = world.seen()
    half = dataclasses.replace(seen, x_BF=seen.x_BF.bfloat16(), x0_BF=seen.x0_BF.bfloat16())
    for name in ("rift-cov", "cka", "procrustes", "distill", "bss"):
        found = make(name, world)(half)
        assert found.dtype == torch.float32
        same = dataclasses.replace(half, x_BF=half.x_BF.float(), x0_BF=half.x0_BF.float())
        torch.testing.assert_close(found, make(name, world)(same))
