"""Reductions make the tokens they were fitted with; principal axes are scikit-learn's, also by subspace iteration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from keepsight.heads import reduction
from keepsight.heads.reduction import Reduction, principal_axes
from keepsight.heads.token import make_token


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


def test_many_axes_by_subspace_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 200, generator=generator) * (0.97 ** torch.arange(200))
    x = x - x.mean(dim=0)
    exact_values, exact = principal_axes(x, 20)
    monkeypatch.setattr(reduction, "EXACT", 10)
    values, axes = principal_axes(x, 20)
    torch.testing.assert_close(values, exact_values, rtol=1e-3, atol=0)
    torch.testing.assert_close(axes.T @ axes, torch.eye(20), atol=1e-4, rtol=0)
    # The space of the first axes is the same to within a degree.
    assert torch.linalg.svdvals(exact[:, :10].T @ axes[:, :15]).min() > 0.999


def test_a_reduction_makes_the_tokens() -> None:
    x = torch.randn(30, 6)
    for views in ([], [x + 0.1 * torch.randn(30, 6)]):
        token = make_token(x, views, 4)
        torch.testing.assert_close(Reduction.of(token)(x), token.z_ND, atol=1e-5, rtol=1e-5)
        for view, z in zip(views, token.views, strict=True):
            torch.testing.assert_close(Reduction.of(token)(view), z, atol=1e-5, rtol=1e-5)
