from __future__ import annotations

import pytest
import torch

from keepsight.heads.ctc import CtcNet, CtcNetConfig, decode_greedily

SMALL = CtcNetConfig(width=16, heads=4, dropout=0.0)


@pytest.mark.parametrize(("h", "w", "finer"), [(8, 8, 3), (4, 12, 2), (1, 5, 1)])
def test_shapes(h: int, w: int, finer: int) -> None:
    net = CtcNet(6, 26, finer, SMALL)
    assert net(torch.randn(2, 6, h, w)).shape == (2, w * finer, 27)


def test_columns_see_their_neighbours_alone() -> None:
    torch.manual_seed(0)
    net = CtcNet(6, 4, 2, CtcNetConfig(width=16, heads=2, convolutions=2, kernel=3)).eval()
    map_BChw = torch.randn(1, 6, 3, 8)
    changed = map_BChw.clone()
    changed[..., 0] += 1
    differs = (net(map_BChw) - net(changed)).abs().amax(dim=(0, 2)) > 1e-6
    assert differs.tolist() == [True] * 4 + [False] * 12  # the column's own two, and one more for each convolution


def test_rows_are_told_apart() -> None:
    torch.manual_seed(0)
    net = CtcNet(6, 4, 1, SMALL).eval()
    map_BChw = torch.randn(1, 6, 3, 8)
    assert not torch.allclose(net(map_BChw), net(map_BChw.flip(2)), atol=1e-4)


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    net = CtcNet(6, 4, 2, SMALL).eval()
    map_BChw = torch.randn(3, 6, 2, 4)
    torch.testing.assert_close(net(map_BChw)[1:2], net(map_BChw[1:2]))


def test_greedy_decoding() -> None:
    best = torch.tensor([[0, 1, 1, 0, 1, 2, 2], [0] * 7, [3, 3, 3, 3, 3, 3, 3]])
    logits = torch.nn.functional.one_hot(best, 4).float()
    assert decode_greedily(logits) == [[1, 1, 2], [], [3]]


def test_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 4 and of 3 heads"):
        CtcNet(6, 4, 1, CtcNetConfig(width=16, heads=3))
