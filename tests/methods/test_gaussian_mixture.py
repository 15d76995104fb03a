"""The semi-supervised Gaussian mixture: against discriminant analysis and an independent EM, its gain, its limits."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from keepsight.heads.gaussian import GaussianHead
from keepsight.heads.token import make_token
from keepsight.methods.gaussian_mixture import GaussianMixture, GaussianMixtureConfig
from semi_parts import clusters, first_of_each, views_of


def accuracy(head: GaussianHead, x: Tensor, labels: Tensor) -> float:
    return (head(x).argmax(dim=1) == labels).float().mean().item()


def alone(own: float, weight: float, **more: Any) -> GaussianMixture:
    """Nothing to choose."""
    return GaussianMixture(
        GaussianMixtureConfig(candidates=((own, weight),), default=(own, weight), reduced=8, axes=8, **more)
    )


def test_without_unlabelled_images_and_shrinkage_it_is_linear_discriminant_analysis() -> None:
    x, labels = clusters(60, shares=[3, 2, 1])
    head = alone(0.0, 1.0, shrinkage=1e-9).fit(x, labels, x[:0], 3, seed=0)
    counts = np.bincount(labels) + 1.0
    reference = LinearDiscriminantAnalysis(solver="svd", priors=counts / counts.sum()).fit(x.double().numpy(), labels)
    # scikit-learn's divides the scatter by N - K, ours by N: the same classifier up to the scale of the distances.
    expected, found = [], []
    for rows in (labels == 0, labels == 1, labels == 2):
        expected.append(reference.means_[len(expected)])
        found.append(x[rows].double().mean(dim=0).numpy())
    np.testing.assert_allclose(found, expected)
    within = sum(
        (x[labels == k].double() - x[labels == k].double().mean(0)).T
        @ (x[labels == k].double() - x[labels == k].double().mean(0))
        for k in range(3)
    )
    covariance = (within / 60).numpy()
    logits = np.stack(
        [multivariate_normal(found[k], covariance).logpdf(x.double().numpy()) for k in range(3)], axis=1
    ) + np.log(counts / counts.sum())
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(torch.softmax(head(x), dim=1).numpy(), chance, atol=2e-4)
    other, _ = clusters(300, seed=3)
    same = head(other).argmax(dim=1).numpy() == reference.predict(other.double().numpy())
    assert same.mean() > 0.97


@pytest.mark.parametrize(("own", "weight"), [(0.0, 1.0), (0.0, 0.3), (0.8, 1.0)])
def test_expectation_maximisation_against_plain_numpy(own: float, weight: float) -> None:
    x, labels = clusters(90, spread=1.5)
    order = first_of_each(labels, 4)
    x, labels = x[order], labels[order]
    method = alone(own, weight, shrinkage=0.2, iterations=5, tolerance=1e-12)
    z = x[:, :5].double() - x[:, :5].double().mean(dim=0)
    found = method._fit(z, labels[:12], 3, own, weight, 5).logits(z).softmax(dim=1).numpy()

    data, known = z.numpy(), np.eye(3)[labels[:12].numpy()]
    total = np.cov(data.T, bias=True)
    spread, prior = np.trace(total) / 5, np.full(3, 1 / 3)
    means, covariances = known.T @ data[:12] / 4, [total] * 3

    def chances() -> Any:
        shrunk = [0.8 * c + 0.2 * spread * np.eye(5) for c in covariances]
        density = [p * multivariate_normal(m, c).pdf(data) for p, m, c in zip(prior, means, shrunk, strict=True)]
        return np.stack(density, axis=1) / np.sum(density, axis=0)[:, None]

    for _ in range(5):
        r = chances()
        r[:12] = known
        r[12:] *= weight
        mass = r.sum(axis=0)
        means = r.T @ data / mass[:, None]
        scatters = [((data - m) * r[:, [k]]).T @ (data - m) for k, m in enumerate(means)]
        share = own * mass / (mass + 5)
        covariances = [
            s * c / n + (1 - s) * sum(scatters) / mass.sum() for s, c, n in zip(share, scatters, mass, strict=True)
        ]
    np.testing.assert_allclose(found, chances(), atol=1e-9)


def test_unlabelled_images_and_views_help() -> None:
    x, labels = clusters(600)
    order = first_of_each(labels, 1)
    x, labels, views = x[order], labels[order], views_of(x[order], 3)
    test, truth = clusters(600, seed=9)
    few = accuracy(GaussianMixture().fit(x[:3], labels[:3], x[:0], 3, 0), test, truth)
    more = accuracy(GaussianMixture().fit(x[:3], labels[:3], x[3:], 3, 0), test, truth)
    most = accuracy(GaussianMixture().fit(x[:3], labels[:3], x[3:], 3, 0, make_token(x, views, 384)), test, truth)
    assert few < 0.9
    assert max(more, most) > few + 0.05
    assert most > 0.97


def test_classes_may_be_renamed() -> None:
    x, labels = clusters(300, spread=1.5)
    permutation = torch.tensor([1, 2, 0])
    plain = alone(0.5, 1.0).fit(x[:12], labels[:12], x[12:], 3, seed=0)
    renamed = alone(0.5, 1.0).fit(x[:12], permutation[labels[:12]], x[12:], 3, seed=0)
    torch.testing.assert_close(renamed(x)[:, permutation], plain(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("unlabelled", [0, 1, 40])
@pytest.mark.parametrize("per_class", [1, 2])
def test_tiny_duplicated_and_constant_sets_work(unlabelled: int, per_class: int) -> None:
    x, labels = clusters(60)
    x = x.repeat(1, 12)  # fewer images than features
    x, labels = x[first_of_each(labels, per_class)], labels[first_of_each(labels, per_class)]
    known = 3 * per_class
    head = GaussianMixture().fit(x[:known], labels[:known], x[known : known + unlabelled], 3, seed=0)
    assert torch.isfinite(head(x)).all()
    assert accuracy(head, x[:known], labels[:known]) >= 0.6
    same = GaussianMixture().fit(x[:1].repeat(known, 1), labels[:known], x[:1].repeat(unlabelled, 1), 3, seed=0)
    assert torch.isfinite(same(x)).all()
    doubled = torch.cat([x, x])[known:]
    assert torch.isfinite(GaussianMixture().fit(x[:known], labels[:known], doubled, 3, seed=0)(x)).all()


def test_two_unbalanced_classes() -> None:
    x, labels = clusters(400, classes=2, shares=[9, 1])
    head = GaussianMixture().fit(x[:40], labels[:40], x[40:], 2, seed=0)
    test, truth = clusters(400, classes=2, shares=[9, 1], seed=5)
    predicted = head(test).argmax(dim=1)
    assert accuracy(head, test, truth) > 0.95
    assert (predicted[truth == 1] == 1).float().mean() > 0.8


def test_the_candidate_is_chosen_on_hidden_labels() -> None:
    """Unlabelled images from elsewhere: to learn from them is wrong, and the labels show it."""
    x, labels = clusters(90, spread=0.7)
    stray = 12 * torch.randn(400, 8, generator=torch.Generator().manual_seed(2)).abs() + torch.tensor([6.0] + 7 * [0.0])
    config = GaussianMixtureConfig(candidates=((0.5, 1.0), (0.0, 0.0)), reduced=8)
    chosen = GaussianMixture(config).fit(x, labels, stray, 3, seed=0)
    test, truth = clusters(300, spread=0.7, seed=4)
    fixed = alone(0.5, 1.0).fit(x, labels, stray, 3, seed=0)
    assert accuracy(chosen, test, truth) > accuracy(fixed, test, truth)
    assert len(chosen.whiten_CDD) == 1
