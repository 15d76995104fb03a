from __future__ import annotations

import pytest
import torch

from conftest import TinyBackbone
from keepsight.backbones.load import load_backbone
from keepsight.evaluate.weight_distance import weight_distance


def test_nothing_moved() -> None:
    found = weight_distance(TinyBackbone(), TinyBackbone())
    assert (found.total, found.blocks) == (0.0, {})


def test_a_scaled_network_is_as_far_as_the_scale() -> None:
    before, after = TinyBackbone(), TinyBackbone()
    with torch.no_grad():
        for p in after.network.parameters():
            p.mul_(1.25)
    assert weight_distance(before, after).total == pytest.approx(0.25, rel=1e-6)


def test_a_block_is_found_by_its_weights() -> None:
    before, after = (load_backbone("test_vit", weights="random", size=32) for _ in range(2))
    with torch.no_grad():
        for p in after.block_modules()[1].parameters():
            p.mul_(0.5)
    found = weight_distance(before, after)
    assert found.blocks[2] == pytest.approx(0.5, rel=1e-6)
    assert {b: d for b, d in found.blocks.items() if b != 2} == dict.fromkeys(set(found.blocks) - {2}, 0.0)
    assert {0, 1, 3, 4} <= set(found.blocks)
    squares = [sum(p.double().square().sum().item() for p in m.parameters()) for m in before.block_modules()]
    every = sum(p.double().square().sum().item() for p in before.network.parameters())
    assert found.total == pytest.approx(0.5 * (squares[1] / every) ** 0.5, rel=1e-6)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="different parameters"):
        weight_distance(TinyBackbone(), TinyBackbone(width=6))
