from __future__ import annotations

import pytest
import torch
from torch import nn

from keepsight.evaluate.sharpness import sharpness


def test_of_a_quadratic_it_is_known_exactly() -> None:
    """loss = sum_l a_l ||W_l||^2 / 2 rises by rho^2 times itself, whatever is drawn: the slope cancels, norms are relative."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()

    def loss() -> float:
        return sum((i + 1) * p.square().sum().item() / 2 for i, p in enumerate(network.parameters()))

    found = sharpness(network, loss, rho=0.2, pairs=3)
    assert found.rise == pytest.approx(0.04 * found.loss, rel=1e-9)
    assert found.spread == pytest.approx(0, abs=1e-9)


def test_a_narrow_valley_is_sharper_and_the_weights_come_back() -> None:
    layer = nn.Linear(6, 1, bias=False).double()
    target = layer.weight.detach().clone()
    found = {}
    for steepness in (1.0, 10.0):
        found[steepness] = sharpness(
            layer, lambda s=steepness: s * (layer.weight - target).square().sum().item(), rho=0.1, pairs=4
        )
    assert found[1.0].loss == 0
    assert found[10.0].rise == pytest.approx(10 * found[1.0].rise)
    assert torch.equal(layer.weight, target)


def test_weights_come_back_after_an_error_and_draws_depend_on_the_seed() -> None:
    layer = nn.Linear(6, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    calls = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        sharpness(layer, lambda: next(calls))
    assert all(torch.equal(p, old) for p, old in zip(layer.parameters(), before, strict=True))

    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))

    def loss() -> float:
        return layer(x).exp().mean().item()

    one, two, other = (sharpness(layer, loss, rho=0.3, pairs=2, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert one.rise != other.rise
