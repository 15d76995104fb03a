import math

import pytest
import torch
from torch.nn import functional as F

from keepsight.objectives.contrastive import contrastive


def unit(n: int, e: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_against_the_formula_written_out() -> None:
    u, v, s = unit(5, 3, 0), unit(5, 3, 1), 4.0
    total = 0.0
    for i in range(5):
        across = [math.exp(s * float(u[i] @ v[j])) for j in range(5)]
        down = [math.exp(s * float(u[j] @ v[i])) for j in range(5)]
        total -= (math.log(across[i] / sum(across)) + math.log(down[i] / sum(down))) / 2
    assert contrastive(u, v, s).item() == pytest.approx(total / 5, rel=1e-12)


def test_a_pair_with_the_same_caption_is_no_negative() -> None:
    u, v, s = unit(3, 4, 0), unit(3, 4, 1), 2.0
    v[2] = v[0]
    loss = 0.0
    for i, negatives in enumerate(([1], [0, 2], [1])):
        own = math.exp(s * float(u[i] @ v[i]))
        across = sum(math.exp(s * float(u[i] @ v[j])) for j in negatives)
        down = sum(math.exp(s * float(u[j] @ v[i])) for j in negatives)
        loss += (math.log1p(across / own) + math.log1p(down / own)) / 2
    assert contrastive(u, v, s, torch.tensor([4, 9, 4])).item() == pytest.approx(loss / 3, rel=1e-12)
    assert contrastive(u, v, s, torch.tensor([4, 9, 5])).item() != pytest.approx(loss / 3)


def test_gradient_and_symmetry() -> None:
    u, v = unit(4, 3, 0).requires_grad_(), unit(4, 3, 1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    captions = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b, s: contrastive(a, b, s, captions), (u, v, scale))
    assert contrastive(u, v, scale, captions).item() == pytest.approx(contrastive(v, u, scale, captions).item())
    order = torch.tensor([2, 0, 3, 1])
    again = contrastive(u[order], v[order], scale, captions[order])
    assert again.item() == pytest.approx(contrastive(u, v, scale, captions).item())


def test_without_negatives_there_is_nothing_to_learn() -> None:
    u = unit(3, 4, 0).requires_grad_()
    loss = contrastive(u, unit(3, 4, 1), 2.0, torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert u.grad is not None
    assert float(u.grad.abs().max()) == 0.0
