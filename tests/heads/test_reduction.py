"""Reductions: principal axes against scikit-learn's, whitening of what varies between views, degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from keepsight.heads.linear import standardisation
from keepsight.heads.reduction import Reduction, principal_axes


@pytest.mark.parametrize("shape", [(60, 8), (8, 60)], ids=["many images", "few images"])
def test_axes_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, shape[1])
    x = x - x.mean(dim=0)
    values, axes = principal_axes(x, 5)
    expected = PCA(5, svd_solver="full").fit(x.double().numpy())
    np.testing.assert_allclose(values.numpy() * len(x) / (len(x) - 1), expected.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(
        np.abs((axes.T @ torch.from_numpy(expected.components_.T).float()).numpy()), np.eye(5), atol=1e-3
    )


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_the_power_decides_how_variances_are_evened_out(power: float) -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) @ torch.randn(6, 6)
    z = Reduction.fit(x, 4, power)(x)
    assert z.shape == (200, 4)
    assert z.square().mean().item() == pytest.approx(1.0, rel=1e-4)
    mean_F, scale_F = standardisation(x)
    variances, _ = principal_axes((x - mean_F) / scale_F, 4)
    ratio = z.var(dim=0, correction=0) / variances ** (1 - 2 * power)
    torch.testing.assert_close(ratio / ratio[0], torch.ones(4), atol=1e-3, rtol=0)


def test_what_varies_between_views_is_shrunk() -> None:
    generator = torch.Generator().manual_seed(2)
    content, nuisance = (
        torch.randn(300, 2, generator=generator),
        [torch.randn(300, 2, generator=generator) for _ in range(5)],
    )
    mixing = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    plain, *views = (torch.cat([content, 2 * n], dim=1) @ mixing for n in nuisance)
    reduction = Reduction.fit_views(plain, views, 4, ridge=1e-3)
    z, again = reduction(plain), reduction(views[0])
    # Of two views of one image little is different; plain principal axes keep the nuisance.
    apart = (z - again).square().mean() / z.square().mean()
    pca = Reduction.fit(plain, 4)
    before = (pca(plain) - pca(views[0])).square().mean() / pca(plain).square().mean()
    assert apart < 0.05 * before
    assert z.square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_a_large_ridge_is_plain_principal_axes_and_views_alike_are_no_error() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    other = x + 0.1 * torch.randn(50, 6)
    near = Reduction.fit_views(x, [other], 6, ridge=1e6)(x)
    pca = Reduction.fit(x, 6, power=0.0)(x)
    torch.testing.assert_close(near @ near.T, pca @ pca.T, atol=1e-3, rtol=0)
    assert torch.isfinite(Reduction.fit_views(x, [x.clone()], 6)(x)).all()


def test_fewer_images_or_axes_than_asked_for() -> None:
    x = torch.randn(3, 10)
    assert Reduction.fit(x, 8).axes_FD.shape == (10, 2)
    assert Reduction.fit_views(x, [x + 0.1], 8).axes_FD.shape == (10, 2)
    with pytest.raises(ValueError, match="same features"):
        Reduction.fit(torch.ones(4, 5), 3)
    with pytest.raises(ValueError, match="no views"):
        Reduction.fit_views(x, [], 3)


def test_constant_features_are_left_alone() -> None:
    x = torch.randn(20, 4)
    x[:, 2] = 7
    z = Reduction.fit(x, 4)(x)
    assert z.shape[1] == 3
    assert torch.isfinite(z).all()
