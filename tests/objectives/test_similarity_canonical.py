"""Canonical correlations: through covariance matrices and scikit-learn, truncation, weights, degenerate input. Float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from torch import Tensor

from keepsight.objectives.similarity import mean_cca, pwcca, svcca


def pair(n: int = 60, d1: int = 5, d2: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(d1)
    shared = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x, y = (
        shared @ torch.randn(2, d, generator=generator, dtype=torch.float64)
        + torch.randn(n, d, generator=generator, dtype=torch.float64)
        for d in (d1, d2)
    )
    return x * torch.arange(1, d1 + 1) + 2, y - 1


def by_covariances(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Correlations, descending, and x's canonical directions: C_xx^-1 C_xy C_yy^-1 C_yx a = rho^2 a."""
    a, b = x.numpy() - x.numpy().mean(0), y.numpy() - y.numpy().mean(0)
    xx, yy, xy = a.T @ a, b.T @ b, a.T @ b
    values, directions = scipy.linalg.eigh(xy @ np.linalg.solve(yy, xy.T), xx)
    keep = np.argsort(-values)[: min(len(xx), len(yy))]
    return np.sqrt(values[keep]), directions[:, keep]


@pytest.mark.parametrize("size", [(60, 5, 4), (60, 3, 7)])
def test_mean_cca_is_the_covariance_formula(size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    assert mean_cca(x, y).item() == pytest.approx(by_covariances(x, y)[0].mean(), rel=1e-9)


def test_mean_cca_is_scikit_learns() -> None:
    x, y = pair(200, 3, 3)
    a, b = CCA(n_components=3, max_iter=5000, tol=1e-12).fit_transform(x.numpy(), y.numpy())
    each = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)]
    assert mean_cca(x, y).item() == pytest.approx(np.mean(each), abs=1e-5)


@pytest.mark.parametrize("variance", [0.6, 0.9, 0.99])
@pytest.mark.parametrize("size", [(60, 5, 4), (20, 30, 40)])
def test_svcca_is_cca_of_principal_components(variance: float, size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    if size[0] < size[1] and variance > 0.9:
        variance = 0.8
    cut = [
        torch.from_numpy(PCA(n_components=variance, svd_solver="full").fit_transform(part.numpy())) for part in (x, y)
    ]
    assert svcca(x, y, variance).item() == pytest.approx(by_covariances(*cut)[0].mean(), rel=1e-8)


@pytest.mark.parametrize("size", [(60, 5, 4), (60, 3, 7)])
def test_pwcca_weighs_by_what_x_carries(size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    correlations, directions = by_covariances(x, y)
    centred = x.numpy() - x.numpy().mean(0)
    variates = centred @ directions
    variates /= np.linalg.norm(variates, axis=0)
    weights = np.abs(variates.T @ centred).sum(axis=1)
    assert pwcca(x, y).item() == pytest.approx((weights * correlations).sum() / weights.sum(), rel=1e-8)
    assert pwcca(x, y).item() != pytest.approx(pwcca(y, x).item(), abs=1e-4)
    assert pwcca(x, y).item() != pytest.approx(mean_cca(x, y).item(), abs=1e-4)


def test_rank_is_what_counts_not_columns() -> None:
    x, y = pair()
    assert mean_cca(torch.cat([x, x @ torch.ones(5, 3, dtype=torch.float64), x[:, :1] * 0], dim=1), y).item() == (
        pytest.approx(mean_cca(x, y).item())
    )
    few_x, few_y = pair(8, 2, 2)  # eight images of 20 columns, of rank two
    lift = torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mean_cca(few_x @ lift, few_y).item() == pytest.approx(mean_cca(few_x, few_y).item())


def test_full_rank_is_refused_because_everything_would_correlate() -> None:
    x, y = pair(6, 10, 10)
    for measure in (mean_cca, pwcca, lambda a, b: svcca(a, b, 1.0)):
        for a, b in ((x, y), (x, y[:, :2]), (x[:, :2], y)):
            with pytest.raises(ValueError, match="every correlation would be 1"):
                measure(a, b)
    for n in (2, 3):
        with pytest.raises(ValueError, match="every correlation would be 1"):
            mean_cca(x[:n], y[:n])
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        mean_cca(x[:1], y[:1])
    with pytest.raises(ValueError, match="variance"):
        svcca(x, y, 0.0)


def test_duplicates_change_nothing() -> None:
    x, y = pair()
    for measure in (mean_cca, svcca, pwcca):
        assert measure(x.repeat(3, 1), y.repeat(3, 1)).item() == pytest.approx(measure(x, y).item())


def test_without_gradient_and_in_float64() -> None:
    x, y = pair()
    value = svcca(x.float().requires_grad_(True), y.float())
    assert value.dtype == torch.float64
    assert not value.requires_grad
