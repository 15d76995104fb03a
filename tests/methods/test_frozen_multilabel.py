"""k-NN and the probe on images with several classes each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from keepsight.heads.independent import cross_validate_independent, fit_independent
from keepsight.heads.linear import LinearHead
from keepsight.heads.load import build_head, head_kind
from keepsight.heads.logistic import row_space
from keepsight.heads.neighbours import NeighbourHead
from keepsight.methods.frozen import KNN, KNNConfig, Probe


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    y = found.target
    targets = np.stack([y % 2 == 0, np.isin(y, (2, 3, 5, 7)), y > 4], axis=1)
    return torch.from_numpy(found.data.astype(np.float32)), torch.from_numpy(targets.astype(np.int8))


def mean_ap(head: torch.nn.Module, x: Tensor, targets: Tensor) -> float:
    with torch.inference_mode():
        return float(average_precision_score(targets.numpy(), torch.sigmoid(head(x)).numpy()))


@pytest.mark.parametrize("method", [KNN(), Probe()])
def test_both_learn_several_classes(method: KNN | Probe) -> None:
    x, targets = digits()
    head = method.fit(x[:300], targets[:300], x[:0], 3, seed=0)
    chance = targets[300:].double().mean().item()
    assert mean_ap(head, x[300:], targets[300:]) > chance + 0.25
    again = build_head(head_kind(head), head.shape())
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(x[300:400]), head(x[300:400]))


def test_the_neighbours_of_an_image_give_their_mean_targets() -> None:
    x, targets = torch.eye(4), torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=torch.int8)
    head = NeighbourHead(features=4, classes=2, bank=4, k=2, independent=1)
    head.store(x, targets.float(), torch.zeros(4), torch.ones(4))
    chance = torch.sigmoid(head(torch.tensor([[1.0, 1.0, 0.0, 0.0]])))
    assert chance[0].tolist() == pytest.approx([1.0, 0.5], abs=1e-3)
    assert head.shape()["independent"] == 1
    assert "independent" not in NeighbourHead(features=4, classes=2, bank=4, k=2).shape()


def test_k_has_the_lowest_leave_one_out_log_loss() -> None:
    x, targets = digits()
    x, targets = x[:80], targets[:80]
    losses = {}
    for k in (1, 5, 20):
        chances = []
        for i in range(80):
            others = torch.arange(80) != i
            mean, scale = x.mean(0), x.std(0, correction=0)
            head = NeighbourHead(features=64, classes=3, bank=79, k=k, independent=1)
            head.store(x[others], targets[others].float(), mean, torch.where(scale > 0, scale, 1.0))
            chances.append(head(x[i : i + 1]))
        losses[k] = torch.nn.functional.binary_cross_entropy_with_logits(torch.cat(chances), targets.float()).item()
    head = KNN(KNNConfig(ks=(1, 5, 20))).fit(x, targets, x[:0], 3, seed=0)
    assert head.k == min(losses, key=lambda k: losses[k])


def test_each_class_is_the_logistic_regression_of_scikit_learn() -> None:
    x, targets = digits()
    x = (x[:200, 10:30] / 16).double()
    strength = 1e-2
    space = row_space(x)
    weight, bias = fit_independent(space, targets[:200], strength, tolerance=1e-6)
    # Two weight vectors w and -w share the penalty: lam / 2 (|w|^2 + |w|^2) is lam / 4 |2 w|^2.
    c = 2 / (strength * space.squared_length * 200)
    for k in range(3):
        peer = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(x.numpy(), targets[:200, k].numpy())
        ours = (x @ weight[k] + bias[k]).numpy()
        # The ladder's bias is centred over the two classes, which their difference does not see.
        assert np.abs(ours - peer.decision_function(x.numpy())).max() < 1e-3


def test_a_class_that_all_or_none_have_gets_its_frequency() -> None:
    x, targets = digits()
    targets = targets[:50].clone()
    targets[:, 0], targets[:, 1] = 0, 1
    head = Probe().fit(x[:50], targets, x[:0], 3, seed=0)
    assert isinstance(head, LinearHead)
    chance = torch.sigmoid(head(x[50:60]))
    assert chance[:, 0].tolist() == pytest.approx([0.5 / 51] * 10, rel=1e-4)
    assert chance[:, 1].tolist() == pytest.approx([50.5 / 51] * 10, rel=1e-4)
    assert chance[:, 2].std() > 0.01


def test_cross_validation_scores_only_rows_that_a_fit_did_not_see() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((60, 200)))
    targets = torch.from_numpy((rng.random((60, 3)) < 0.5).astype(np.int8))  # chance, but known by heart
    folds = [(np.setdiff1d(np.arange(60), held), held) for held in np.array_split(np.arange(60), 4)]
    best, loss = cross_validate_independent(row_space(x), targets, (1e-4, 1e3), folds, 0.01)
    assert best == 1
    assert 0.6 < loss < 0.8
