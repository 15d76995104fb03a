"""CKA, RSA, mutual k-NN and the control: independent formulas, invariances, gradients, degenerate input. Float64 throughout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, pearsonr, spearmanr
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from keepsight.objectives.similarity import (
    linear_cka,
    mean_cca,
    mutual_knn,
    procrustes_distance,
    pwcca,
    rbf_cka,
    rsa,
    shuffled_control,
    svcca,
)

Measure = Callable[[Tensor, Tensor], Tensor]


def pair(n: int, d1: int, d2: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features that share two directions, off centre."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    shared = draw(n, 2)
    return shared @ draw(2, d1) + draw(n, d1) + 3, shared @ draw(2, d2) + draw(n, d2) - 1


def song_hsic(kernel_x: Tensor, kernel_y: Tensor) -> float:
    """The unbiased estimator, term by term (Song et al. 2012, eq. 5)."""
    n = len(kernel_x)
    a, b = (kernel - torch.diag(kernel.diagonal()) for kernel in (kernel_x, kernel_y))
    ones = torch.ones(n, dtype=a.dtype)
    whole = torch.trace(a @ b) + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
    return ((whole - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3))).item()


def biased_hsic(kernel_x: Tensor, kernel_y: Tensor) -> float:
    n = len(kernel_x)
    centring = torch.eye(n, dtype=kernel_x.dtype) - 1 / n
    return torch.trace(kernel_x @ centring @ kernel_y @ centring).item()


def by_definition(kernel_x: Tensor, kernel_y: Tensor, debiased: bool) -> float:
    hsic = song_hsic if debiased else biased_hsic
    return hsic(kernel_x, kernel_y) / (hsic(kernel_x, kernel_x) * hsic(kernel_y, kernel_y)) ** 0.5


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("size", [(40, 5, 7), (6, 20, 9), (4, 3, 3), (12, 1, 30)])
def test_linear_cka_is_its_definition(size: tuple[int, int, int], debiased: bool) -> None:
    x, y = pair(*size)
    assert linear_cka(x, y, debiased).item() == pytest.approx(by_definition(x @ x.T, y @ y.T, debiased), rel=1e-10)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("size", [(21, 5, 7), (6, 20, 9)])
def test_rbf_cka_is_its_definition(size: tuple[int, int, int], debiased: bool) -> None:
    x, y = pair(*size)
    kernels = []
    for part in (x, y):
        distances = torch.cdist(part, part)
        off = distances[~torch.eye(len(part), dtype=torch.bool)]
        kernels.append(torch.exp(-(distances**2) / (2 * (0.7 * off.median()) ** 2)))
    assert rbf_cka(x, y, 0.7, debiased).item() == pytest.approx(by_definition(*kernels, debiased), rel=1e-9)


def test_debiased_cka_of_unrelated_features_is_zero_on_average_and_biased_is_not() -> None:
    x, _ = pair(32, 64, 1)
    fresh = torch.randn(200, 32, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert abs(sum(linear_cka(x, y, True).item() for y in fresh) / 200) < 0.02
    assert linear_cka(fresh[0], fresh[1]).item() == pytest.approx(64 / (64 + 32), abs=0.1)  # about d / (d + n)


@pytest.mark.parametrize("size", [(30, 6, 4), (8, 12, 10)])
def test_rsa_is_scipys(size: tuple[int, int, int]) -> None:
    x, y = pair(*size)
    for kind in ("euclidean", "correlation"):
        a, b = pdist(x.numpy(), kind), pdist(y.numpy(), kind)
        assert rsa(x, y, kind).item() == pytest.approx(spearmanr(a, b).statistic, abs=1e-10)  # type: ignore[arg-type]
        assert rsa(x, y, kind, "pearson").item() == pytest.approx(pearsonr(a, b).statistic, abs=1e-10)  # type: ignore[arg-type]


def test_rsa_shares_ranks_among_ties() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [2.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert rsa(x, y).item() == pytest.approx(spearmanr(pdist(x.numpy()), pdist(y.numpy())).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rows", [7, 1024])
def test_mutual_knn_is_scikit_learns(monkeypatch: pytest.MonkeyPatch, metric: str, rows: int) -> None:
    monkeypatch.setattr("keepsight.objectives.neighbourhoods.ROWS", rows)
    x, y = pair(30, 6, 40)
    near = [
        NearestNeighbors(n_neighbors=4, metric=metric).fit(part.numpy()).kneighbors(return_distance=False)
        for part in (x, y)
    ]
    share = sum(len(set(a) & set(b)) for a, b in zip(*near, strict=True)) / (30 * 4)
    assert 0 < share < 1
    assert mutual_knn(x, y, 4, metric).item() == pytest.approx(share)  # type: ignore[arg-type]


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(x, y, debiased=True)


def rsa_of_correlations(x: Tensor, y: Tensor) -> Tensor:
    return rsa(x, y, "correlation", "pearson")


def near_by_distance(x: Tensor, y: Tensor) -> Tensor:
    return mutual_knn(x, y, 3, "euclidean")


def near_by_cosine(x: Tensor, y: Tensor) -> Tensor:
    return mutual_knn(x, y, 3)


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "rotation": lambda x: x @ torch.from_numpy(ortho_group.rvs(x.shape[1], random_state=3)),
    "scale": lambda x: 2.5 * x,
    "translation": lambda x: x + 10 * torch.arange(1, x.shape[1] + 1),
    "linear": lambda x: x @ torch.diag(torch.arange(1, x.shape[1] + 1).double() ** 2),
}
HOLDS: list[tuple[Measure, set[str]]] = [
    (linear_cka, {"rotation", "scale", "translation"}),
    (debiased_cka, {"rotation", "scale", "translation"}),
    (rbf_cka, {"rotation", "scale", "translation"}),
    (procrustes_distance, {"rotation", "translation"}),
    (svcca, {"rotation", "scale", "translation"}),
    (mean_cca, {"rotation", "scale", "translation", "linear"}),
    (pwcca, {"scale", "translation"}),
    (rsa, {"rotation", "scale", "translation"}),
    (rsa_of_correlations, {"scale"}),
    (near_by_distance, {"rotation", "scale", "translation"}),
    (near_by_cosine, {"rotation", "scale"}),
]


@pytest.mark.parametrize(("measure", "holds"), HOLDS, ids=[measure.__name__ for measure, _ in HOLDS])
def test_what_each_measure_is_blind_to(measure: Measure, holds: set[str]) -> None:
    x, y = pair(40, 6, 5)
    x, y = x * torch.arange(1, 7), y * torch.arange(1, 6)
    plain = measure(x, y).item()
    for name, change in MAPS.items():
        same = measure(change(x), y).item() == pytest.approx(plain, abs=1e-9)
        assert same is (name in holds), name


@pytest.mark.parametrize("measure", [m for m, _ in HOLDS if m not in (mean_cca, pwcca, svcca)])
def test_fewer_images_than_dimensions_and_equal_sides(measure: Measure) -> None:
    x, _ = pair(8, 30, 1)
    expected = 0.0 if measure is procrustes_distance else 1.0
    assert measure(x, x).item() == pytest.approx(expected, abs=1e-10)
    assert measure(x[:, :20], x[:, 20:]).ndim == 0


@pytest.mark.parametrize("size", [(7, 3, 2), (5, 6, 7)])
def test_gradients(size: tuple[int, int, int]) -> None:
    x, y = (part.requires_grad_(True) for part in pair(*size))
    for measure in (linear_cka, debiased_cka, rbf_cka, lambda a, b: rbf_cka(a, b, debiased=True)):
        assert torch.autograd.gradcheck(measure, (x, y))
    for kind in ("euclidean", "correlation"):
        if min(size[1:]) > 2:  # two numbers correlate by exactly 1 or -1
            assert torch.autograd.gradcheck(lambda a, b, k=kind: rsa(a, b, k, "pearson"), (x, y))


@pytest.mark.parametrize(
    "measure", [linear_cka, debiased_cka, rbf_cka, mean_cca, svcca, pwcca, rsa, rsa_of_correlations]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_share_nothing(measure: Measure, dtype: torch.dtype) -> None:
    x = pair(20, 4, 1)[0].to(dtype)
    constant = torch.full((20, 3), 0.1, dtype=dtype) + torch.tensor([0.7, 0.0, 1e3], dtype=dtype) * (
        measure is not rsa_of_correlations
    )
    x.requires_grad_(True)
    constant.requires_grad_(True)
    for value in (measure(x, constant), measure(constant, x), measure(constant, constant)):
        assert value.item() == 0
    if measure in (linear_cka, debiased_cka, rbf_cka, rsa_of_correlations):
        for part in torch.autograd.grad(measure(x, constant) + measure(constant, x), (x, constant)):
            assert torch.isfinite(part).all()


def test_duplicates() -> None:
    x, y = pair(12, 3, 4)
    assert linear_cka(x.repeat(2, 1), y.repeat(2, 1)).item() == pytest.approx(linear_cka(x, y).item())
    few = torch.cat(
        [x[:1].repeat(9, 1), x[:4]]
    )  # most pairs coincide: the median of distances is taken over the others
    assert rbf_cka(few, few).item() == pytest.approx(1)
    assert rsa(few, few).item() == pytest.approx(1)
    assert rsa(few, y[:13].repeat(2, 1)[:13], comparison="pearson").isfinite()


@pytest.mark.parametrize(
    ("measure", "smallest"),
    [(linear_cka, 2), (debiased_cka, 4), (rbf_cka, 2), (lambda x, y: rbf_cka(x, y, debiased=True), 4), (rsa, 3)],
)
def test_too_few_images(measure: Measure, smallest: int) -> None:
    x, y = pair(5, 3, 4)
    with pytest.raises(ValueError, match=f"at least {smallest} images, got {smallest - 1}"):
        measure(x[: smallest - 1], y[: smallest - 1])
    assert torch.isfinite(measure(x[:smallest], y[:smallest]))


def test_two_images_are_always_alike() -> None:
    x, y = pair(2, 3, 4)
    assert linear_cka(x, y).item() == pytest.approx(1)


def test_bad_input_is_named() -> None:
    x, y = pair(5, 3, 4)
    for a, b, says in (
        (x, y[:4], "same images"),
        (x[0], y, "matrices"),
        (x.long(), y, "floating"),
        (x[:, :0], y, "matrices"),
    ):
        with pytest.raises(ValueError, match=says):
            linear_cka(a, b)
    with pytest.raises(ValueError, match="k must be from 1 to 4"):
        mutual_knn(x, y)
    with pytest.raises(ValueError, match="bandwidth"):
        rbf_cka(x, y, 0)
    with pytest.raises(ValueError, match="hamming"):
        mutual_knn(x, y, 2, "hamming")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kendall"):
        rsa(x, y, comparison="kendall")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="repeats"):
        shuffled_control(x, y, linear_cka, repeats=0)


def test_half_precision_and_autocast_are_computed_in_float32() -> None:
    x, y = (part.float() for part in pair(50, 40, 40))
    plain = linear_cka(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_cka(x, y), plain)
    assert linear_cka(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    assert linear_cka(x * 1e9, y * 1e-9).item() == pytest.approx(plain.item(), rel=1e-5)  # fourth powers would overflow


def test_not_a_number_is_not_hidden() -> None:
    x, y = pair(6, 3, 4)
    x[0, 0] = torch.nan
    for measure in (linear_cka, debiased_cka, rbf_cka, rsa_of_correlations):
        assert measure(x, y).isnan()


def test_shuffled_control_breaks_the_pairing_alone() -> None:
    x, _ = pair(40, 5, 1)
    control = shuffled_control(x, x, debiased_cka, seed=1, repeats=50)
    assert abs(control.item()) < 0.1
    assert torch.equal(control, shuffled_control(x, x, debiased_cka, seed=1, repeats=50))
    assert not torch.equal(control, shuffled_control(x, x, debiased_cka, seed=2, repeats=50))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert torch.equal(shuffled_control(x, x, linear_cka, seed=3), linear_cka(x, x[order]))
