"""The mask network: its shapes, masked attention, and queries from centres."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from keepsight.heads.attention import LayerConfig
from keepsight.heads.segmentation import PAPER, MaskedLayer, MaskNet, MaskNetConfig, peaks, seen

SMALL = MaskNetConfig(width=16, mask_width=8, queries=5, encoder=LayerConfig(heads=2, feedforward=16),
                      decoder=LayerConfig(heads=2, feedforward=16))  # fmt: skip


@pytest.mark.parametrize("upsample", [1, 2, 4])
@pytest.mark.parametrize("proposed", [False, True])
def test_shapes(proposed: bool, upsample: int) -> None:
    net = MaskNet(6, 3, SMALL.model_copy(update={"proposed": proposed, "upsample": upsample}))
    out = net(torch.randn(2, 6, 4, 3))
    assert out.logits.shape == (3, 2, 5, 4)
    assert out.masks.shape == (3, 2, 5, 4 * upsample, 3 * upsample)
    assert out.centres.shape == ((2, 4, 3) if proposed else (0,))


def test_every_weight_learns() -> None:
    """Also through the layers whose masks steer the next one."""
    torch.manual_seed(0)
    for proposed in (False, True):
        net = MaskNet(6, 3, SMALL.model_copy(update={"proposed": proposed}))
        out = net(torch.randn(2, 6, 4, 4))
        (out.logits.square().mean() + out.masks.square().mean() + out.centres.square().sum()).backward()
        # A key's bias shifts all that is compared alike, and softmax does not see it.
        dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert [name for name in dead if not name.endswith("key.bias")] == []


def test_the_paper_s_sizes() -> None:
    with torch.device("meta"):
        net = MaskNet(1408, 80, PAPER)
        out = net(torch.empty(1, 1408, 16, 16))
    assert out.masks.shape == (10, 1, 100, 16, 16)
    assert len(net.encoder) == 6
    assert [layer.forwards[0].out_features for layer in (net.encoder[0], net.decoder[0])] == [512, 1024]


def test_a_query_sees_what_its_mask_covers() -> None:
    """Changing the memory outside the mask changes nothing; a query without a mask sees everything."""
    torch.manual_seed(0)
    layer = MaskedLayer(16, LayerConfig(heads=2, feedforward=16)).eval()
    x, place, memory, position = torch.randn(1, 1, 16), torch.randn(1, 1, 16), torch.randn(1, 9, 16), torch.randn(9, 16)
    masks = torch.full((1, 1, 6, 6), -1.0)
    masks[..., 2:4, 2:4] = 1.0  # the middle cell
    covered, empty = seen(masks, 3, 3), seen(-masks.abs(), 3, 3)
    assert covered.flatten().tolist() == [False] * 4 + [True] + [False] * 4
    assert empty.all()
    moved = memory.clone()
    moved[:, 0] += 1
    before, after = (layer(x, place, m, position, covered) for m in (memory, moved))
    torch.testing.assert_close(before, after)
    before, after = (layer(x, place, m, position, empty) for m in (memory, moved))
    assert not torch.allclose(before, after)
    moved = memory.clone()
    moved[:, 4] += 1
    assert not torch.allclose(layer(x, place, moved, position, covered), layer(x, place, memory, position, covered))


def test_queries_start_from_the_likeliest_centres() -> None:
    values = torch.tensor([[[5.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 3.0]]])
    assert peaks(values, 3).tolist() == [[0, 8, 1]]
    with torch.no_grad():
        net = MaskNet(6, 3, SMALL.model_copy(update={"queries": 20})).eval()
        assert net(torch.randn(1, 6, 3, 3)).logits.shape[2] == 9  # no more queries than cells


@pytest.mark.parametrize("wrong", [{"upsample": 3}, {"width": 20}, {"queries": 0}])
def test_sizes_that_cannot_be_are_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        MaskNetConfig(**wrong)
