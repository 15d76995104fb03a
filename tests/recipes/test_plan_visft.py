"""The plan of stage 2: arithmetic that must add up, and the choice."""

from __future__ import annotations

import pytest

from keepsight.core import UserError
from keepsight.recipes.plan_visft import RESERVE, parse_gpus, parse_tasks, plan_visft
from keepsight.recipes.visft_config import visft_config


@pytest.mark.parametrize("text", ["8", "8x", "0x32GB", "x32GB", "8x0GB", "eightx32GB", "8x32TB"])
def test_gpus_that_are_not_understood(text: str) -> None:
    with pytest.raises(UserError, match="such as 8x32GB"):
        parse_gpus(text)


def test_gpus_and_tasks() -> None:
    assert parse_gpus("2x1.5 GiB") == (2, 3 * 2**29)
    assert parse_tasks("captioning, detection,captioning") == ("detection", "captioning")
    for text in ("", "detection,boxes"):
        with pytest.raises(UserError, match="detection, segmentation, captioning"):
            parse_tasks(text)


def test_a_small_plan_adds_up() -> None:
    plan = plan_visft("test_vit", "2x4GB", rank=4, batch=4, size=64, tasks="detection", precision="no")
    assert (plan.size, plan.depth, plan.gpus, plan.batch) == (64, 6, 2, 4)
    assert plan.trainable == 6 * 2 * 4 * 2 * 64
    ddp, ddp_checkpointed, fsdp, _ = plan.ways
    whole = plan.parameters + plan.trainable + plan.head_parameters["detection"]
    assert ddp.weights == 4 * whole
    assert fsdp.weights == 2 * whole
    assert (ddp.gradients, ddp.optimizer, ddp.gathered) == (8 * plan.trainable, 8 * plan.trainable, 0)
    assert (fsdp.gradients, fsdp.optimizer) == (2 * plan.trainable, 4 * plan.trainable)
    assert ddp_checkpointed.activations < ddp.activations
    assert ddp.total <= 4 * 2**30 - RESERVE
    assert plan.chosen == ddp
    assert plan.launch is not None
    assert plan.launch.startswith("torchrun --standalone --nproc-per-node 2 -m keepsight visft")
    # The command says what was planned, in settings that the command knows.
    words = plan.launch.split()
    joint = visft_config("DATA", assignments=[word for word in words if "=" in word]).joint
    assert (joint.adapter.lora.rank, joint.adapter.lora.alpha, joint.batch_size) == (4, 1.0, 4)
    assert (joint.adapter.checkpoint_blocks, joint.training.precision) == (False, "no")
    assert words[words.index("--size") + 1] == "64"


def test_what_does_not_fit_and_what_cannot_be_shared_out() -> None:
    plan = plan_visft("test_vit", "1x2GB", size=64, tasks="detection", checkpointing=True)
    assert [way.sharding for way in plan.ways] == ["none"]
    assert plan.chosen is None
    assert plan.launch is None
    with pytest.raises(UserError, match="make it a multiple"):
        plan_visft("test_vit", "2x4GB", batch=3)
