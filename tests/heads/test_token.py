"""Tokens: variances evened out, what varies between views shrunk, degenerate input."""

from __future__ import annotations

import pytest
import torch

from keepsight.heads.linear import standardisation
from keepsight.heads.reduction import principal_axes
from keepsight.heads.token import make_token


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_the_power_decides_how_variances_are_evened_out(power: float) -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) @ torch.randn(6, 6)
    z = make_token(x, (), 4, power=power).z_ND
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
    token = make_token(plain, views, 4, ridge=1e-3)
    z, again = token.z_ND, token.views[0]
    # Of two views of one image little is different; plain principal axes keep the nuisance.
    apart = (z - again).square().mean() / z.square().mean()
    mean_F, scale_F = standardisation(plain)
    before = ((plain - views[0]) / scale_F).square().mean() / ((plain - mean_F) / scale_F).square().mean()
    assert apart < 0.05 * before
    assert z.square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_a_large_ridge_is_plain_principal_axes_and_views_alike_are_no_error() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    other = x + 0.1 * torch.randn(50, 6)
    near = make_token(x, [other], 6, ridge=1e6).z_ND
    pca = make_token(x, (), 6, power=0.0).z_ND
    torch.testing.assert_close(near @ near.T, pca @ pca.T, atol=1e-3, rtol=0)
    assert torch.isfinite(make_token(x, [x.clone()], 6).z_ND).all()


def test_fewer_images_than_axes_and_images_that_are_all_the_same() -> None:
    x = torch.randn(3, 10)
    assert make_token(x, (), 8).axes_FD.shape == (10, 2)
    assert make_token(x, [x + 0.1], 8).axes_FD.shape == (10, 2)
    same = torch.ones(4, 5)
    token = make_token(same, [same], 3)
    assert token.z_ND.tolist() == token.views[0].tolist() == [[0.0]] * 4
    with pytest.raises(ValueError, match="same features"):
        principal_axes(torch.zeros(4, 5), 3)


def test_the_mean_over_views_counts_the_plain_image_and_rows_go_together() -> None:
    x = torch.randn(20, 4)
    token = make_token(x, [x + 0.3 * torch.randn(20, 4)], 3)
    torch.testing.assert_close(token.mean_over_views(), (token.z_ND + token.views[0]) / 2)
    assert torch.equal(make_token(x, (), 3).mean_over_views(), make_token(x, (), 3).z_ND)
    order = torch.tensor([5, 0, 7])
    assert torch.equal(token.rows(order).views[0], token.views[0][order])


def test_constant_features_are_left_alone() -> None:
    x = torch.randn(20, 4)
    x[:, 2] = 7
    z = make_token(x, (), 4).z_ND
    assert z.shape[1] == 3
    assert torch.isfinite(z).all()
