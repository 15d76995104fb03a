"""Procrustes: scipy's value, the envelope gradient, the three solvers, n < d and n > d, degenerate input. Float64."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.stats import ortho_group
from torch import Tensor

from keepsight.objectives.similarity import procrustes, procrustes_distance

SOLVERS = ("svd", "gram", "newton-schulz")


def pair(n: int, d1: int, d2: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    shared = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return tuple(  # type: ignore[return-value]
        3 * shared @ torch.randn(3, d, generator=generator, dtype=torch.float64)
        + torch.randn(n, d, generator=generator, dtype=torch.float64)
        + 4
        for d in (d1, d2)
    )


@pytest.mark.parametrize("size", [(30, 6, 6), (5, 8, 8), (9, 8, 8)])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("centre", [True, False])
def test_is_scipys(size: tuple[int, int, int], solver: str, centre: bool) -> None:
    x, y = pair(*size)
    found = procrustes(x, y, solver, 40, centred=centre)  # type: ignore[arg-type]
    x0, y0 = (part - part.mean(0) if centre else part for part in (x, y))
    rotation, nuclear = orthogonal_procrustes(x0.numpy(), y0.numpy())
    expected = ((x0.numpy() @ rotation - y0.numpy()) ** 2).sum()
    assert found.nuclear.item() == pytest.approx(nuclear, rel=1e-9)
    assert found.distance.item() == pytest.approx(expected, rel=1e-8)
    if solver == "gram":
        assert found.rotation is None
    else:
        assert found.rotation is not None
        assert (x0 @ found.rotation - y0).square().sum().item() == pytest.approx(expected, rel=1e-8)


def test_is_scipys_disparity_after_scaling() -> None:
    """scipy centres, scales both sides to one, and lets the scale of one go free: 1 - nuclear^2."""
    x, y = pair(20, 5, 5)
    a, b = ((part - part.mean(0)) / (part - part.mean(0)).norm() for part in (x, y))
    assert 1 - procrustes(a, b).nuclear.item() ** 2 == pytest.approx(scipy_procrustes(x.numpy(), y.numpy())[2])


@pytest.mark.parametrize("size", [(30, 6, 9), (5, 12, 8), (10, 12, 7)])
def test_different_dimensions_count_as_padded(size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    wide = max(size[1:])
    padded = [torch.nn.functional.pad(part, (0, wide - part.shape[1])) for part in (x, y)]
    expected = procrustes(*padded, "svd").distance.item()
    for solver in (*SOLVERS, "auto"):
        found = procrustes(x, y, solver, 40)  # type: ignore[arg-type]
        assert found.distance.item() == pytest.approx(expected, rel=1e-8)
        assert found.rotation is None or found.rotation.shape == size[1:]


def test_auto_never_builds_a_rotation_for_few_images() -> None:
    x, y = pair(5, 12, 12)
    assert procrustes(x, y).rotation is None
    x, y = pair(30, 12, 12)
    rotation = procrustes(x, y).rotation
    assert rotation is not None
    assert torch.allclose(rotation @ rotation.T, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("size", [(9, 4, 4), (9, 4, 3), (4, 6, 6), (4, 6, 7)])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("centre", [True, False])
def test_gradients(size: tuple[int, int, int], solver: str, centre: bool) -> None:
    x, y = (part.requires_grad_(True) for part in pair(*size))

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return procrustes(a, b, solver, 60, centred=centre).distance  # type: ignore[arg-type]

    def nuclear(a: Tensor, b: Tensor) -> Tensor:
        return procrustes(a, b, solver, 60, centred=centre).nuclear  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(distance, (x, y))
    assert torch.autograd.gradcheck(nuclear, (x, y))


def test_gradient_is_the_residual() -> None:
    x, y = pair(20, 5, 5)
    x.requires_grad_(True)
    found = procrustes(x, y, centred=False)
    (gradient,) = torch.autograd.grad(found.distance, x)
    assert found.rotation is not None
    assert torch.allclose(gradient, 2 * (x - y @ found.rotation.T))
    assert not found.rotation.requires_grad


def test_normalised_gradient() -> None:
    x, y = (part.requires_grad_(True) for part in pair(6, 4, 4))
    assert torch.autograd.gradcheck(procrustes_distance, (x, y))


@pytest.mark.parametrize("size", [(40, 8, 8), (5, 8, 8)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_rotations_are_free_and_scale_is_not(size: tuple[int, int, int], solver: str) -> None:
    x, _ = pair(*size)
    turned = x @ torch.from_numpy(ortho_group.rvs(8, random_state=0)) + 7
    assert procrustes_distance(turned, x, solver, 40).item() == pytest.approx(0, abs=1e-8)  # type: ignore[arg-type]
    assert procrustes_distance(2 * turned, x, solver, 40).item() == pytest.approx(1, abs=1e-8)  # type: ignore[arg-type]
    y = pair(*size)[1]
    assert procrustes_distance(3 * x, 3 * y).item() == pytest.approx(procrustes_distance(x, y).item())


def test_newton_schulz_comes_from_below() -> None:
    """From a random 48 x 48 product: most of the nuclear norm after 10 steps, all but little after 15."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 48, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = procrustes(x, y, "svd").nuclear.item()
    parts = [procrustes(x, y, "newton-schulz", steps).nuclear.item() / exact for steps in (1, 5, 10, 15)]
    assert parts == sorted(parts)
    assert parts[-1] <= 1
    assert parts[2] > 0.97
    assert parts[3] > 0.999


@pytest.mark.parametrize("solver", SOLVERS)
def test_degenerate_input(solver: str) -> None:
    x, y = pair(6, 4, 4)
    constant = torch.full((6, 4), 0.1, dtype=torch.float64, requires_grad=True)
    found = procrustes(constant, y, solver)  # type: ignore[arg-type]
    assert found.nuclear.item() == pytest.approx(0, abs=1e-12)
    assert procrustes_distance(constant, y, solver).item() == pytest.approx(1)  # type: ignore[arg-type]
    assert torch.isfinite(torch.autograd.grad(found.distance, constant)[0]).all()
    with pytest.raises(ValueError, match="reference features are constant"):
        procrustes_distance(x, constant, solver)  # type: ignore[arg-type]
    same = x[:1].repeat(5, 1)
    assert procrustes(torch.cat([same, x]), torch.cat([same, x]), solver, 60).distance.item() == pytest.approx(  # type: ignore[arg-type]
        0, abs=1e-6
    )
    for n in (2, 3):
        assert procrustes(x[:n], x[:n], solver, 60).distance.item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        procrustes(x[:1], y[:1], solver)  # type: ignore[arg-type]
    assert procrustes(x[:1], x[:1], solver, 60, centred=False).distance.item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]


def test_bad_arguments_are_named() -> None:
    x, y = pair(6, 4, 4)
    with pytest.raises(ValueError, match="'qr'"):
        procrustes(x, y, "qr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations"):
        procrustes(x, y, "newton-schulz", 0)


def test_autocast_is_ignored() -> None:
    x, y = (part.float() for part in pair(20, 12, 12))
    plain = procrustes(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(procrustes(x, y).distance, plain.distance)
        assert procrustes_distance(x.bfloat16(), y.bfloat16(), "newton-schulz").dtype == torch.float32
