"""The predicted memory of a step against what torch's allocator says about a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from keepsight.adapters.freeze import checkpoint_blocks
from keepsight.adapters.lora import LoraConfig, add_lora
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout
from keepsight.core.features import feature_map
from keepsight.evaluate.memory_model import LiveBytes, LoraModel

LORA = LoraConfig(rank=8, alpha=1)
EVA: dict[str, Any] = {"embed_dim": 96, "num_heads": 3, "depth": 6}
VIT: dict[str, Any] = {"depth": 2}


def built(name: str, size: int, arguments: dict[str, Any]) -> Backbone:
    backbone = load_backbone(name, weights="random", size=size, timm_args=arguments)
    add_lora(backbone, Readout(blocks=(backbone.depth,)), LORA)
    return backbone.train()


def step(backbone: Backbone, batch: int) -> None:
    size = backbone.preprocessing.size
    images = torch.zeros(batch, 3, size, size)
    feature_map(backbone(images, (backbone.depth,))).square().mean().backward()


def measured(backbone: Backbone, batch: int, folder: Path) -> int:
    """Bytes that the allocator gave at the peak of the second step, gradients being there."""
    step(backbone, batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(backbone, batch)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e["name"] == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize(
    ("name", "size", "arguments", "batch", "checkpointing"),
    [
        ("eva_giant_patch14_clip_224", 56, EVA, 2, False),  # six equal blocks, of which two and three are run
        ("eva_giant_patch14_clip_224", 56, EVA, 2, True),
        ("vit_tiny_patch16_224", 64, VIT, 3, False),
    ],
)
def test_prediction_is_what_the_allocator_gave(
    name: str, size: int, arguments: dict[str, Any], batch: int, checkpointing: bool, tmp_path: Path
) -> None:
    predicted = LoraModel(name, LORA, size, arguments).step(batch, checkpointing=checkpointing).peak
    backbone = built(name, size, arguments)
    if checkpointing:
        checkpoint_blocks(backbone)
    found = measured(backbone, batch, tmp_path)
    assert predicted == pytest.approx(found, rel=0.1)


def test_sizes_are_those_of_the_real_network() -> None:
    model = LoraModel("eva_giant_patch14_clip_224", LORA, 56, EVA)
    plain = load_backbone("eva_giant_patch14_clip_224", weights="random", size=56, timm_args=EVA)
    real = built("eva_giant_patch14_clip_224", 56, EVA)
    assert model.sizes.backbone == sum(p.numel() for p in plain.parameters())
    assert model.sizes.lora == sum(p.numel() for p in real.parameters() if p.requires_grad) == 6 * 2 * 8 * 2 * 96
    assert (model.channels, model.grid, model.sizes.depth) == (96, (4, 4), 6)


def test_what_changes_the_memory() -> None:
    model = LoraModel("eva_giant_patch14_clip_224", LORA, 56, EVA)
    plain = model.step(2, checkpointing=False)
    assert model.step(2, checkpointing=False) == plain  # the model is as before
    assert model.step(2, checkpointing=True).kept < plain.kept / 3
    more = [model.step(batch, checkpointing=False).kept for batch in (4, 6)]
    assert more[1] - more[0] == pytest.approx(more[0] - plain.kept, rel=0.01)
    # Mixed precision makes a copy of every frozen weight that a gradient passes, unless the weights are narrow already.
    mixed = model.step(2, checkpointing=False, mixed=True)
    narrow = model.step(2, checkpointing=False, mixed=True, layout="gathered")
    weights = 2 * (model.sizes.backbone - model.sizes.beside_blocks)
    assert mixed.kept > 0.8 * weights
    assert narrow.kept < mixed.kept - 0.5 * weights


def test_checkpointed_blocks_are_computed_again_as_on_a_gpu() -> None:
    # Norms behind the attention, as in EVA-E, get what autocast has made narrow.
    model = LoraModel("eva_giant_patch14_clip_224", LORA, 56, EVA | {"use_post_norm": True})
    mixed = model.step(2, checkpointing=True, mixed=True)
    assert mixed.kept < model.step(2, checkpointing=False, mixed=True).kept / 3
    assert mixed.peak > model.step(2, checkpointing=True, mixed=True, as_on_gpu=False).peak


def test_views_and_freed_tensors_cost_nothing() -> None:
    known = torch.zeros(10)
    with LiveBytes([known]) as live:
        views = known[2:], known.view(2, 5)
        known.add_(1)
        x = torch.ones(3)
        y = x * 2
        del x
    assert (live.now, live.peak) == (12, 24)
    del views, y
    assert live.now == 0
