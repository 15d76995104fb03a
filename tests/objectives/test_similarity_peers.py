"""The same features through other people's packages, where they are installed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from keepsight.objectives.similarity import (
    StreamingCKA,
    linear_cka,
    mean_cca,
    procrustes,
    rbf_cka,
)

SIZES = [(60, 8, 12), (20, 40, 30)]


def pair(n: int, d1: int, d2: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    shared = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x, y = (
        2 * shared @ torch.randn(3, d, generator=generator, dtype=torch.float64)
        + torch.randn(n, d, generator=generator, dtype=torch.float64)
        for d in (d1, d2)
    )
    return x + 1, y


@pytest.mark.parametrize("size", SIZES)
def test_ckatorch(size: tuple[int, int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports plotting libraries
        ckatorch = pytest.importorskip("ckatorch")
    x, y = pair(*size)
    streaming = StreamingCKA(*size[1:], chunk=16)
    streaming.update(x, y)
    for debiased in (False, True):
        theirs = ckatorch.cka_base(x, y, "linear", unbiased=debiased, method="fro_norm").item()
        assert linear_cka(x, y, debiased).item() == pytest.approx(theirs, rel=1e-11)
        assert (streaming.debiased() if debiased else streaming.biased()).item() == pytest.approx(theirs, rel=1e-11)
    assert linear_cka(x, y, True).item() == pytest.approx(ckatorch.cka_batch(x[None], y[None]).item(), rel=1e-11)


@pytest.mark.parametrize("debiased", [False, True])
def test_ckatorch_rbf(debiased: bool) -> None:
    """Their median is over all n^2 entries, the zeros of the diagonal among them; equal kernels need equal medians."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ckatorch = pytest.importorskip("ckatorch")
    x, _ = pair(61, 8, 12)
    y = 3 * x.flip(0).roll(5, 0) + x**2 / 3
    squares = torch.cdist(x, x).square()
    own = squares[tuple(torch.triu_indices(61, 61, 1))].median()
    theirs = ckatorch.cka_base(x, x.flip(1), "rbf", debiased, 0.5 * (own / squares.median()).sqrt().item()).item()
    assert rbf_cka(x, x.flip(1), 0.5, debiased).item() == pytest.approx(theirs, rel=1e-9)
    assert rbf_cka(x, y, 0.5, debiased).item() < 0.99


@pytest.mark.parametrize("size", SIZES)
def test_torch_cka(size: tuple[int, int, int]) -> None:
    """Its networks are here identities, its loaders give all images as one batch: then it is the unbiased value, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_cka = pytest.importorskip("torch_cka")
        x, y = (part.float() for part in pair(*size))
        models = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
        cka = torch_cka.CKA(*models, "x", "y", ["0"], ["0"])
        cka.compare(*(DataLoader(TensorDataset(part), batch_size=len(part)) for part in (x, y)))
    theirs = cka.export()["CKA"][0, 0].item()
    assert linear_cka(x, y, True).item() == pytest.approx(theirs, rel=1e-4)


def test_netrep() -> None:
    """Not on the package index: runs where it was installed from its repository."""
    linear = pytest.importorskip("netrep.metrics.linear")
    x, y = pair(60, 8, 8)
    distance = linear.LinearMetric(alpha=1.0, score_method="euclidean").fit_score(x.numpy(), y.numpy())
    assert procrustes(x, y).distance.item() == pytest.approx(distance**2, rel=1e-9)
    angle = linear.LinearMetric(alpha=0.0, score_method="angular").fit_score(x.numpy(), y.numpy())
    assert mean_cca(x, y).item() == pytest.approx(torch.tensor(angle).cos().item(), rel=1e-6)
