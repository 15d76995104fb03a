"""Distances of features: independent references, gradients in float64, invariances, degenerate input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from keepsight.objectives.invariance import (
    activation_attention,
    batch_spectral_shrinkage,
    cka_gap,
    covariance,
    covariance_gap,
    effective_rank,
    feature_covariance_gap,
    feature_distance,
    feature_spectrum_gap,
    layerwise_distance,
    procrustes_gap,
    rotation,
    spectrum_gap,
    weighted_map_distance,
)


def features(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1.5


def turn(d: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(features(d, d, seed)).Q


GAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "covariance": feature_covariance_gap,
    "spectrum": feature_spectrum_gap,
    "procrustes": procrustes_gap,
    "cka": cka_gap,
    "distance": feature_distance,
    "layers": lambda x, x0: layerwise_distance([x], [x0]),
    "map": lambda x, x0: weighted_map_distance(x[None], x0[None], activation_attention(x0[None])),
}
ROTATION_INVARIANT = {"spectrum", "procrustes", "cka"}
SHAPES = [(6, 4), (5, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=["n > d", "n < d"])
@pytest.mark.parametrize("gap", GAPS)
def test_zero_unchanged_positive_changed_and_free_of_scale(gap: str, shape: tuple[int, int]) -> None:
    x0, x = features(*shape), features(*shape, seed=1)
    value = GAPS[gap](x, x0)
    assert value.item() > 0.05
    assert GAPS[gap](x0, x0).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(GAPS[gap](10 * x, 10 * x0), value)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GAPS[gap](x[rows], x0[rows]), value)
    # In single precision, features a hundredth of the usual size neither vanish nor overflow.
    small = GAPS[gap](0.01 * x.float(), 0.01 * x0.float())
    torch.testing.assert_close(small, value.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=["n > d", "n < d"])
@pytest.mark.parametrize("gap", GAPS)
def test_gradients(gap: str, shape: tuple[int, int]) -> None:
    x0, x = features(*shape), features(*shape, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: GAPS[gap](x, x0), (x,), atol=1e-4)


@pytest.mark.parametrize("gap", GAPS)
def test_rotating_the_features_costs_nothing_where_it_should(gap: str) -> None:
    x0 = features(6, 4)
    value = GAPS[gap](x0 @ turn(4), x0).item()
    assert (value == pytest.approx(0, abs=1e-10)) == (gap in ROTATION_INVARIANT)


@pytest.mark.parametrize("gap", ["covariance", "spectrum", "procrustes", "cka"])
def test_a_shift_of_all_features_costs_nothing_where_they_are_centred(gap: str) -> None:
    x0, x = features(6, 4), features(6, 4, seed=1)
    torch.testing.assert_close(GAPS[gap](x + 3, x0), GAPS[gap](x, x0))


def test_covariance_is_numpys_and_its_gap_the_definition() -> None:
    x, x0, q = features(7, 3, 1), features(7, 3), turn(3)
    c, c0 = (np.cov(a.numpy(), rowvar=False, bias=True) for a in (x, x0))
    np.testing.assert_allclose(covariance(x).numpy(), c)
    expected = np.linalg.norm(c - q.numpy().T @ c0 @ q.numpy()) ** 2 / np.linalg.norm(c0) ** 2
    assert covariance_gap(covariance(x), covariance(x0), q).item() == pytest.approx(expected)


def test_the_gap_through_gram_matrices_is_the_one_of_covariances() -> None:
    x, x0 = features(5, 9, 1), features(5, 9)
    torch.testing.assert_close(feature_covariance_gap(x, x0), covariance_gap(covariance(x), covariance(x0)))
    torch.testing.assert_close(feature_spectrum_gap(x, x0), spectrum_gap(covariance(x), covariance(x0)))


def test_a_small_change_is_seen_in_single_precision() -> None:
    x0 = features(8, 64)
    x = x0 + 1e-4 * features(8, 64, 1)
    exact = feature_covariance_gap(x, x0).item()
    assert exact < 1e-6
    assert feature_covariance_gap(x.float(), x0.float()).item() == pytest.approx(exact, rel=1e-2)


def test_no_rotation_is_better_than_the_spectrum_says() -> None:
    c, c0 = covariance(features(9, 4, 1)), covariance(features(9, 4))
    best = spectrum_gap(c, c0).item()
    assert all(covariance_gap(c, c0, turn(4, seed)).item() >= best for seed in range(20))
    (values, u), (values0, u0) = torch.linalg.eigh(c), torch.linalg.eigh(c0)
    assert covariance_gap(c, c0, u0 @ u.T).item() == pytest.approx(best)
    expected = (values - values0).square().sum() / values0.square().sum()
    assert best == pytest.approx(expected.item())


def test_recoloured_noise_has_no_covariance_gap_and_nothing_in_common() -> None:
    x0, z = features(4000, 3), features(4000, 3, 1)
    lower, lower0 = torch.linalg.cholesky(covariance(z)), torch.linalg.cholesky(covariance(x0))
    x = torch.linalg.solve_triangular(lower, (z - z.mean(0)).T, upper=False).T @ lower0.T
    assert feature_covariance_gap(x, x0).item() == pytest.approx(0, abs=1e-20)
    assert cka_gap(x, x0).item() == pytest.approx(1, abs=0.01)
    assert procrustes_gap(x, x0).item() > 1


def test_the_sampling_error_is_what_the_effective_rank_says() -> None:
    scale = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    c = torch.diag(scale.square())
    generator = torch.Generator().manual_seed(0)
    n, errors = 12, []
    for _ in range(2000):
        x = torch.randn(n, 4, generator=generator, dtype=torch.float64) * scale
        errors.append(covariance_gap(covariance(x) * n / (n - 1), c).item())
    assert np.mean(errors) == pytest.approx((effective_rank(c).item() + 1) / (n - 1), rel=0.05)


def test_rotations_are_orthogonal_and_start_at_the_identity() -> None:
    assert torch.equal(rotation(torch.zeros(4, 4)), torch.eye(4))
    skew = features(4, 4).requires_grad_(True)
    q = rotation(skew)
    torch.testing.assert_close(q.T @ q, torch.eye(4, dtype=torch.float64))
    assert torch.linalg.det(q).item() == pytest.approx(1)
    x0, x = features(9, 4), features(9, 4, 1)
    assert torch.autograd.gradcheck(lambda s: covariance_gap(covariance(x), covariance(x0), rotation(s)), (skew,))


def test_procrustes_is_scipys() -> None:
    x, x0 = features(9, 4, 1), features(9, 4)
    a, b = (v.numpy() - v.numpy().mean(axis=0) for v in (x0, x))
    q, _ = orthogonal_procrustes(a, b)
    expected = np.linalg.norm(b - a @ q) ** 2 / np.linalg.norm(a) ** 2
    assert procrustes_gap(x, x0).item() == pytest.approx(expected)


def test_the_distance_is_one_where_everything_has_become_the_mean() -> None:
    x0 = features(6, 4)
    assert feature_distance(x0.mean(0).expand_as(x0), x0).item() == pytest.approx(1)
    assert feature_distance(x0 + 1, x0).item() > 0.5  # and a shift is a change


def test_layers_count_the_same_and_lengths_not_at_all() -> None:
    x, x0 = features(6, 4, 1).reshape(2, 3, 4), features(6, 4).reshape(2, 3, 4)
    y, y0 = features(2, 7, 3), features(2, 7, 2)
    both = layerwise_distance([x, y], [x0, y0])
    torch.testing.assert_close(both, (layerwise_distance([x], [x0]) + layerwise_distance([y], [y0])) / 2)
    torch.testing.assert_close(layerwise_distance([5 * x], [x0]), layerwise_distance([x], [x0]))
    cosines = torch.cosine_similarity(x, x0, dim=-1)
    torch.testing.assert_close(layerwise_distance([x], [x0]), (2 - 2 * cosines).mean())
    assert layerwise_distance([-x0], [x0]).item() == pytest.approx(4)
    with pytest.raises(ValueError, match="paired"):
        layerwise_distance([], [])


def test_maps_weigh_their_channels() -> None:
    x0 = features(12, 3).reshape(3, 4, 3)
    moved = x0.clone()
    moved[..., 0] += 1
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    variance = x0.reshape(12, 3).numpy().var(axis=0)
    expected = 1.0 / (variance * weight.numpy()).sum()
    assert weighted_map_distance(moved, x0, weight).item() == pytest.approx(expected)
    torch.testing.assert_close(weighted_map_distance(moved, x0, 7 * weight), weighted_map_distance(moved, x0, weight))
    assert weighted_map_distance(moved, x0, torch.tensor([0.0, 1.0, 1.0])).item() == 0


def test_attention_follows_what_varies() -> None:
    x0 = features(12, 3).reshape(3, 4, 3) * torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)
    found = activation_attention(x0)
    np.testing.assert_allclose(
        found.numpy(), x0.reshape(12, 3).numpy().std(0) / x0.reshape(12, 3).numpy().std(0).mean()
    )
    assert activation_attention(torch.ones(2, 2, 3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("k", "taken"), [(1, 1), (3, 3), (99, 4)])
def test_spectral_shrinkage_is_the_sum_of_the_smallest(k: int, taken: int) -> None:
    x = features(6, 4).requires_grad_(True)
    squared = np.sort(np.linalg.svd(x.detach().numpy(), compute_uv=False)) ** 2
    assert batch_spectral_shrinkage(x, k).item() == pytest.approx(squared[:taken].sum() / squared.mean())
    torch.testing.assert_close(batch_spectral_shrinkage(10 * x, k), batch_spectral_shrinkage(x, k))
    # The norm that it is divided by has no gradient: that of the numerator is checked, times a constant.
    constant = squared.mean()
    (found,) = torch.autograd.grad(batch_spectral_shrinkage(x, k), x)
    (expected,) = torch.autograd.grad(torch.linalg.eigvalsh(x.T @ x)[:k].sum() / constant, x)
    torch.testing.assert_close(found, expected)


def test_features_that_do_not_vary() -> None:
    same = torch.ones(3, 4)
    for gap in ("covariance", "spectrum", "distance", "layers", "map"):
        x = same.clone().requires_grad_(True)
        value = GAPS[gap](x, same)
        value.backward()
        assert value.item() == 0, gap
        assert x.grad is not None
        assert x.grad.isfinite().all(), gap
    moved = features(3, 4).float()
    assert all(math.isfinite(GAPS[gap](moved, same).item()) for gap in ("covariance", "spectrum", "distance"))
    assert math.isfinite(batch_spectral_shrinkage(torch.zeros(3, 4)).item())


def test_products_are_not_cut_by_autocast() -> None:
    x, x0 = features(5, 9, 1).float(), features(5, 9).float()
    for gap in ("covariance", "spectrum", "procrustes", "cka"):
        plain = GAPS[gap](x, x0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(GAPS[gap](x, x0), plain)
