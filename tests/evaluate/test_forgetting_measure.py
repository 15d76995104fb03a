"""Cross-fitted probes, paired intervals and pictures, on features whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from keepsight.evaluate.classification import accuracy, ece
from keepsight.evaluate.forgetting import (
    ProbeRule,
    accuracy_change,
    block_similarity,
    cross_fitted,
    ece_change,
    mean_change,
    rotated_picture,
)
from keepsight.evaluate.intervals import paired_difference


def blobs(n: int = 300, k: int = 3, f: int = 12, apart: float = 2.0, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    labels = np.arange(n) % k
    centres = torch.randn(k, f, generator=generator) * apart
    return centres[labels] + torch.randn(n, f, generator=generator), labels.astype(np.int64)


def rotation(f: int, seed: int = 1) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(f, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q


def chances(rng: np.random.Generator, labels: np.ndarray, skill: float) -> np.ndarray:
    p = rng.dirichlet(np.ones(3), len(labels)) + skill * np.eye(3)[labels]
    return p / p.sum(axis=1, keepdims=True)


def test_every_image_is_predicted_by_probes_that_did_not_see_it() -> None:
    # Features that say nothing about labels: a probe that had seen an image would know it (1-NN would be perfect).
    x = torch.randn(200, 150, generator=torch.Generator().manual_seed(0))
    labels = np.arange(200) % 4
    found = cross_fitted(x, labels, 4, ProbeRule(neighbours=1))
    ones = np.ones(200)
    assert 0.13 < accuracy(found.knn_NK, labels, ones) < 0.37
    assert 0.13 < accuracy(found.probe_NK, labels, ones) < 0.37
    np.testing.assert_allclose(found.probe_NK.sum(axis=1), 1)
    np.testing.assert_allclose(found.knn_NK.sum(axis=1), 1)


def test_separable_features_are_read_and_shuffled_labels_are_chance() -> None:
    x, labels = blobs()
    ones = np.ones(len(labels))
    found = cross_fitted(x, labels, 3, ProbeRule())
    assert accuracy(found.knn_NK, labels, ones) > 0.97
    assert accuracy(found.probe_NK, labels, ones) > 0.97
    shuffled = np.random.default_rng(0).permutation(labels)
    control = cross_fitted(x, shuffled, 3, ProbeRule())
    for p in (control.knn_NK, control.probe_NK):
        assert abs(accuracy(p, shuffled, ones) - 1 / 3) < 0.1


def test_the_probe_is_scikit_learns_on_the_same_folds() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from keepsight.data.splits import stratified_folds

    x, labels = blobs(apart=0.5)
    rule = ProbeRule(strengths=(1e-2,), final_tolerance=1e-5)
    found = cross_fitted(x.double(), labels, 3, rule, seed=3).probe_NK
    for training, held_out in stratified_folds(labels, 5, 3):
        scaler = StandardScaler().fit(x[training].numpy())
        z = scaler.transform(x[training].numpy())
        c = 1 / (1e-2 * (z**2).sum(axis=1).mean() * len(z))
        theirs = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(z, labels[training])
        np.testing.assert_allclose(
            found[held_out], theirs.predict_proba(scaler.transform(x[held_out].numpy())), atol=2e-3
        )


def test_a_class_that_occurs_nowhere_is_never_predicted() -> None:
    x, labels = blobs(k=2)
    found = cross_fitted(x, labels * 2, 3, ProbeRule())
    assert (found.probe_NK[:, 1] == 0).all()
    assert accuracy(found.probe_NK, labels * 2, np.ones(len(labels))) > 0.9


def test_the_same_features_differ_by_exactly_nothing() -> None:
    x, labels = blobs(n=150, apart=0.5)
    one, two = (cross_fitted(x.clone(), labels, 3, ProbeRule(strengths=(1e-4, 1e-2))) for _ in range(2))
    for change in (
        accuracy_change(one.probe_NK, two.probe_NK, labels),
        accuracy_change(one.knn_NK, two.knn_NK, labels),
        ece_change(one.probe_NK, two.probe_NK, labels),
    ):
        assert (change.value, change.low, change.high, change.kind) == (0.0, 0.0, 0.0, "identical")
        assert mean_change([change, change]).kind == "identical"
    assert block_similarity(x, x)[0] == pytest.approx(1, abs=1e-9)


def test_the_change_is_the_paired_difference_of_the_other_implementation() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 400)
    before, after = chances(rng, labels, 1.0), chances(rng, labels, 0.4)
    found = accuracy_change(before, after, labels, seed=5)
    other = paired_difference(accuracy, (after, labels), (before, labels), seed=5)
    assert (found.value, found.low, found.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)
    assert found.high < 0
    found, other = (
        ece_change(before, after, labels, 5),
        paired_difference(ece, (after, labels), (before, labels), seed=5),
    )
    assert (found.value, found.low, found.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 500)
    before = chances(rng, labels, 0.5)
    after = before.copy()
    after[:10] = np.eye(3)[(labels[:10] + 1) % 3]
    same_images = accuracy_change(before, after, labels)
    other_images = accuracy_change(before, after[rng.permutation(500)], labels)
    assert same_images.high - same_images.low < 0.5 * (other_images.high - other_images.low)


def test_predictions_that_differ_but_hit_alike_keep_an_honest_interval() -> None:
    labels = np.arange(100) % 3
    before, after = np.eye(3)[labels], 0.9 * np.eye(3)[labels] + 0.1 / 3
    change = accuracy_change(before, after, labels)
    assert change.value == 0
    assert -0.06 < change.low < -0.02
    assert 0.02 < change.high < 0.06


def test_the_mean_over_sets_has_the_interval_of_independent_sets() -> None:
    rng = np.random.default_rng(4)
    changes = []
    for seed in range(4):
        labels = rng.integers(0, 3, 300)
        changes.append(accuracy_change(chances(rng, labels, 0.6), chances(rng, labels, 0.4), labels, seed))
    mean = mean_change(changes)
    assert mean.value == pytest.approx(np.mean([c.value for c in changes]))
    expected = np.sqrt(sum(c.draws_D.var() for c in changes)) / 4
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * expected, rel=0.15)


def test_similarity_is_one_under_rotation_and_its_control_is_zero() -> None:
    x, _ = blobs(n=200, f=20)
    cka, shuffled = block_similarity(x.double(), x.double() @ rotation(20) + 3)
    assert cka == pytest.approx(1, abs=1e-9)
    assert abs(shuffled) < 0.1
    unrelated, _ = block_similarity(x, torch.randn(200, 40, generator=torch.Generator().manual_seed(9)))
    assert abs(unrelated) < 0.1


@pytest.mark.parametrize("f", [12, 80])
def test_the_picture_of_rotated_features_is_the_same_picture(f: int) -> None:
    x, _ = blobs(n=90, f=f)
    x = x.double() * torch.logspace(1, -3, f, dtype=torch.float64)
    before, after = rotated_picture(x, (x @ rotation(f)) + 5)
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)
    assert before.var(dim=0)[0] > before.var(dim=0)[1]


def test_the_picture_of_other_widths_and_of_change() -> None:
    x, _ = blobs(n=60, f=12)
    before, after = rotated_picture(x, x[:, :5])
    assert before.shape == after.shape == (60, 2)
    before, after = rotated_picture(x, 2 * x)
    torch.testing.assert_close(2 * before, after, atol=1e-4, rtol=1e-4)  # scales stay


def test_too_few_images_of_a_class() -> None:
    with pytest.raises(ValueError, match="two images"):
        cross_fitted(torch.randn(5, 3), np.array([0, 0, 1, 1, 2]), 3, ProbeRule())
    with pytest.raises(ValueError, match="at least one"):
        mean_change([])
