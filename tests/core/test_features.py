"""Features and readouts: pooling against a loop, texts that read back, blocks that do not exist."""

from __future__ import annotations

import pytest
import torch

from keepsight.core import Features, Readout, UserError
from keepsight.core.features import feature_map


def random_features(h: int = 4, w: int = 6, d: int = 5) -> Features:
    generator = torch.Generator().manual_seed(h)
    return Features(torch.randn(3, d, generator=generator), torch.randn(3, h * w, d, generator=generator), (h, w))


@pytest.mark.parametrize(("pool", "side"), [("grid2", 2), ("grid3", 3)])
def test_grid_pooling_equals_a_loop_over_cells(pool: str, side: int) -> None:
    features = random_features(6, 6)
    cells = features.patches.reshape(3, side, 6 // side, side, 6 // side, 5)
    expected = torch.cat([cells[:, i, :, j].mean((1, 2)) for i in range(side) for j in range(side)], dim=1)
    torch.testing.assert_close(features.pooled(pool), expected)


def test_cls_and_mean() -> None:
    features = random_features()
    assert torch.equal(features.pooled("cls"), features.cls)
    torch.testing.assert_close(features.pooled("mean"), features.patches.mean(1))


def test_a_grid_that_does_not_divide_and_one_that_is_too_coarse() -> None:
    assert random_features(4, 5).pooled("grid3").shape == (3, 45)
    one = random_features(1, 1)
    assert torch.equal(one.pooled("grid2"), one.patches[:, 0].repeat(1, 4))


def test_read_concatenates_block_by_block() -> None:
    a, b = random_features(4, 6), random_features(2, 2)
    found = Readout.parse("1,2:cls+grid2").read((a, b))
    expected = torch.cat([a.cls, a.pooled("grid2"), b.cls, b.pooled("grid2")], 1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("text", ["8:grid2", "6,8,10:mean", "last:cls+mean", "last:cls", "-2:grid3"])
def test_texts_read_back(text: str) -> None:
    assert str(Readout.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", ":cls", "8:gird", "x:cls", "0:cls", "8,8:cls", "8:cls+cls", "8:", "8.5:cls", "8:cls:mean"]
)
def test_wrong_texts(text: str) -> None:
    if text == "8:":
        assert Readout.parse(text) == Readout(blocks=(8,))  # a block alone means its class token
        return
    with pytest.raises(UserError, match="is not understood"):
        Readout.parse(text)


def test_blocks_are_resolved_or_refused() -> None:
    assert Readout.parse("last,-3,2:mean").resolved(12).blocks == (12, 10, 2)
    with pytest.raises(UserError, match="blocks 1 to 12"):
        Readout.parse("13:cls").resolved(12)
    with pytest.raises(UserError, match="blocks 1 to 4"):
        Readout.parse("-5:cls").resolved(4)


@pytest.mark.parametrize(
    ("cls", "patches", "grid"),
    [((2, 3), (2, 5, 3), (2, 2)), ((2, 3, 1), (2, 4, 3), (2, 2)), ((2, 3), (2, 4), (2, 2))],
)
def test_shapes_that_do_not_fit(cls: tuple[int, ...], patches: tuple[int, ...], grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="Features need"):
        Features(torch.zeros(cls), torch.zeros(patches), grid)


def test_feature_map_keeps_patches_where_they_are_and_norms_each_block_alone() -> None:
    small = torch.arange(24.0).reshape(1, 6, 4)
    blocks = (Features(torch.zeros(1, 4), small, (2, 3)), Features(torch.zeros(1, 4), 1000 * small, (2, 3)))
    found = feature_map(blocks)
    assert found.shape == (1, 8, 2, 3)
    expected = (small - small.mean(dim=2, keepdim=True)) / small.var(dim=2, keepdim=True, correction=0).sqrt()
    torch.testing.assert_close(found[0, :4, 1, 2], expected[0, 5], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, :4], found[:, 4:], atol=1e-4, rtol=1e-4)
