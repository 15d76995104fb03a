"""k-NN and probe: what they choose is what a search by hand chooses, and few labels do not break them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import FeatureMethod
from keepsight.data.splits import stratified_folds
from keepsight.heads.linear import standardisation
from keepsight.heads.logistic import row_space
from keepsight.methods.frozen import KNN, KNNConfig, Probe, ProbeConfig, choose_k

EMPTY = torch.zeros(0, 20)


def blobs(rows: int, classes: int = 4, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, 20, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(rows, 20, generator=generator), labels


@pytest.mark.parametrize("method", [KNN(), Probe()], ids=["knn", "probe"])
@pytest.mark.parametrize("rows", [4, 8, 40])
def test_easy_classes_are_learnt_from_one_two_and_ten_labels_each(method: FeatureMethod, rows: int) -> None:
    x, labels = blobs(rows, spread=0.2)
    test, truth = blobs(200, spread=0.2, seed=1)
    head = method.fit(x, labels, EMPTY, 4, seed=0)
    assert (head(test).argmax(dim=1) == truth).float().mean() > 0.97


@pytest.mark.parametrize("method", [KNN(), Probe()], ids=["knn", "probe"])
def test_classes_may_be_renamed(method: FeatureMethod) -> None:
    x, labels = blobs(40)
    test, _ = blobs(30, seed=3)
    permutation = torch.tensor([2, 0, 3, 1])
    plain = method.fit(x, labels, EMPTY, 4, seed=0)(test)
    renamed = method.fit(x, permutation[labels], EMPTY, 4, seed=0)(test)
    torch.testing.assert_close(renamed[:, permutation], plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_leave_one_out_vote_agrees_with_scikit_learn(k: int) -> None:
    """With the k forced, the leave-one-out accuracy behind the choice equals another library's."""
    x, labels = blobs(60, spread=2.0)
    mean, scale = standardisation(x)
    unit = F.normalize((x - mean) / scale, dim=1)
    model = KNeighborsClassifier(
        k, weights=lambda d: np.maximum(1 - d**2 / 2, 1e-6) ** 3, algorithm="brute", metric="euclidean"
    )
    expected = cross_val_predict(model, unit.numpy(), labels.numpy(), cv=LeaveOneOut())
    votes = F.one_hot(labels, 4).float()
    for row in range(60):
        others = torch.arange(60) != row
        head = KNN(KNNConfig(ks=(k,))).fit(x, labels, EMPTY, 4, seed=0)
        head.bank_NF, head.votes_NK = unit[others], votes[others]
        assert head.k == k
        assert head(x[row : row + 1]).argmax().item() == expected[row]


def test_k_is_the_best_candidate() -> None:
    x, labels = blobs(120, spread=2.2)
    unit = F.normalize((x - x.mean(dim=0)) / x.std(dim=0, correction=0), dim=1)
    ks = (1, 3, 5, 10, 20)
    accuracies = {}
    for k in ks:
        model = KNeighborsClassifier(
            k, weights=lambda d: np.maximum(1 - d**2 / 2, 1e-6) ** 3, algorithm="brute", metric="euclidean"
        )
        predicted = cross_val_predict(model, unit.numpy(), labels.numpy(), cv=LeaveOneOut())
        accuracies[k] = (predicted == labels.numpy()).mean()
    chosen = choose_k(unit, labels, F.one_hot(labels, 4).float(), ks)
    assert accuracies[chosen] == max(accuracies.values())
    assert accuracies[chosen] > accuracies[1]


def test_k_is_one_where_no_class_has_two_labels() -> None:
    x, labels = blobs(4)
    assert KNN().fit(x, labels, EMPTY, 4, seed=0).k == 1


def test_probe_takes_the_best_cross_validated_strength_and_refits_all_labels() -> None:
    x, labels = blobs(60, spread=2.5)
    config = ProbeConfig(strengths=(1e-4, 1e-2, 1e-1, 1.0), search_tolerance=1e-5, final_tolerance=1e-4)
    probe = Probe(config)
    mean, scale = standardisation(x)
    z = (x - mean) / scale
    space = row_space(z)
    folds = stratified_folds(labels.numpy(), 5, seed=7)
    scores = {}
    for strength in config.strengths:
        chances = np.zeros((60, 4))
        for rows, held_out in folds:
            c = 1 / (strength * space.squared_length * len(rows))
            model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(z[rows].numpy(), labels[rows].numpy())
            chances[held_out] = model.predict_proba(z[held_out].numpy())
        loss = -np.log(chances[np.arange(60), labels.numpy()]).mean()
        scores[strength] = ((chances.argmax(1) == labels.numpy()).mean(), -loss)
    best = max(scores, key=lambda s: scores[s])
    assert probe.strength(space, labels, 4, seed=7) == best
    model = LogisticRegression(C=1 / (best * space.squared_length * 60), tol=1e-8, max_iter=5000)
    expected = model.fit(z.numpy(), labels.numpy()).predict_proba(z.numpy())
    head = probe.fit(x, labels, EMPTY, 4, seed=7)
    assert np.abs(torch.softmax(head(x), dim=1).detach().numpy() - expected).max() < 1e-3


def test_probe_with_a_single_label_in_a_class_takes_the_default_strength() -> None:
    x, labels = blobs(9)
    labels[labels == 3] = 2
    labels[0] = 3
    assert Probe().strength(row_space(x), labels, 4, seed=0) == ProbeConfig().default_strength


def test_the_same_seed_gives_the_same_head() -> None:
    x, labels = blobs(40)
    first, again = (Probe().fit(x, labels, EMPTY, 4, seed=1) for _ in range(2))
    assert torch.equal(first.weight_KF, again.weight_KF)
