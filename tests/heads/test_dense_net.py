"""The dense detector: where its places are, and that its boxes move with what is in the map."""

from __future__ import annotations

import pytest
import torch

from keepsight.heads.dense import DenseNet, DenseNetConfig

SMALL = DenseNetConfig(width=8, groups=2, convolutions=1)


@pytest.mark.parametrize("doubled", [True, False])
def test_places_are_those_of_the_map_or_twice_as_dense(doubled: bool) -> None:
    torch.manual_seed(0)
    out = DenseNet(6, 3, SMALL.model_copy(update={"doubled": doubled}))(torch.randn(2, 6, 4, 5))
    h, w = (8, 10) if doubled else (4, 5)
    assert out.logits.shape == (2, h * w, 3)
    assert out.distances.shape == (2, h * w, 4)
    assert out.quality.shape == (2, h * w)
    torch.testing.assert_close(out.stride, torch.tensor([1 / w, 1 / h]))
    torch.testing.assert_close(out.places[0], out.stride / 2)
    torch.testing.assert_close(out.places[1] - out.places[0], torch.tensor([1 / w, 0.0]))
    assert (out.distances > 0).all()
    assert out.logits.sigmoid().max() < 0.05, "classes begin as improbable"


def test_what_a_place_says_comes_from_around_it() -> None:
    torch.manual_seed(0)
    net = DenseNet(6, 3, SMALL)
    maps = torch.randn(1, 6, 8, 8)
    before = net(maps).logits.view(16, 16, 3)
    # Two neighbours change places, which leaves the statistics of the group norms nearly as they were.
    maps[0, :, 0, 0], maps[0, :, 0, 1] = maps[0, :, 0, 1].clone(), maps[0, :, 0, 0].clone()
    change = (net(maps).logits.view(16, 16, 3) - before).abs().amax(dim=2)
    assert change[:2, :4].mean() > 5 * change[8:, 8:].max()


def test_images_of_a_batch_do_not_touch() -> None:
    torch.manual_seed(0)
    net, maps = DenseNet(6, 3, SMALL), torch.randn(3, 6, 4, 4)
    together, alone = net(maps), net(maps[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits)
    torch.testing.assert_close(together.distances[1:2], alone.distances)


def test_half_precision() -> None:
    torch.manual_seed(0)
    net = DenseNet(6, 3, SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(1, 6, 4, 4))
    assert out.logits.dtype == out.distances.dtype == torch.float32
