"""Self-training: its gain, when it keeps to the labels alone, and its limits."""

import pytest
import torch
from torch import Tensor

from keepsight.heads.linear import LinearHead
from keepsight.heads.reduction import Reduction
from keepsight.heads.token import make_token
from keepsight.methods.self_training import SelfTraining, SelfTrainingConfig, aligned, most_confident
from semi_parts import clusters, first_of_each, views_of


def accuracy(head: LinearHead, x: Tensor, labels: Tensor) -> float:
    return (head(x).argmax(dim=1) == labels).float().mean().item()


def test_unlabelled_images_and_views_help() -> None:
    x, labels = clusters(600)
    order = first_of_each(labels, 2)
    x, labels, views = x[order], labels[order], views_of(x[order], 3)
    test, truth = clusters(600, seed=9)
    few = accuracy(SelfTraining().fit(x[:6], labels[:6], x[:0], 3, 0), test, truth)
    most = accuracy(SelfTraining().fit(x[:6], labels[:6], x[6:], 3, 0, make_token(x, views, 384)), test, truth)
    alone = SelfTrainingConfig(first_share=1e-9, rounds=1, more_rounds=0)
    with_views = accuracy(
        SelfTraining(alone).fit(x[:6], labels[:6], x[6:], 3, 0, make_token(x, views, 384)), test, truth
    )
    assert few < 0.9
    assert most > with_views
    assert most > 0.96


def test_the_head_is_the_fit_on_the_token() -> None:
    """The axes are folded into the weights; on the token the logits are the same."""
    x, labels = clusters(200)
    method = SelfTraining(SelfTrainingConfig(reduced=4))
    head = method.fit(x[:30], labels[:30], x[30:], 3, seed=0)
    reduction = Reduction.of(make_token(x, (), 4))
    weight_KD, bias_K = method._solved(reduction(x), labels[:30], 3, seed=0)
    torch.testing.assert_close(head(x), reduction(x) @ weight_KD.T + bias_K, atol=1e-4, rtol=1e-4)


def test_classes_may_be_renamed() -> None:
    x, labels = clusters(300)
    permutation = torch.tensor([1, 2, 0])
    plain = SelfTraining().fit(x[:3], labels[:3], x[3:], 3, seed=0)
    renamed = SelfTraining().fit(x[:3], permutation[labels[:3]], x[3:], 3, seed=0)
    torch.testing.assert_close(renamed(x).softmax(dim=1)[:, permutation], plain(x).softmax(dim=1), atol=1e-2, rtol=0)


def test_labels_that_self_training_contradicts_are_kept_to() -> None:
    """The class is a direction of small variance; the clusters of the unlabelled images say something else."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator)
    labels = (x[:, 0] > 0).long()
    x[:, 1] += 8.0 * torch.where(torch.rand(500, generator=generator) < 0.5, 1, -1)
    eager = SelfTraining(SelfTrainingConfig(search_rounds=4))
    head = eager.fit(x[:60], labels[:60], x[60:], 2, seed=0)
    probe = SelfTraining().fit(x[:60], labels[:60], x[:0], 2, seed=0)
    assert accuracy(head, x[60:], labels[60:]) > accuracy(probe, x[60:], labels[60:]) - 0.05


@pytest.mark.parametrize("unlabelled", [0, 1, 40])
@pytest.mark.parametrize("per_class", [1, 2])
def test_tiny_duplicated_and_constant_sets_work(unlabelled: int, per_class: int) -> None:
    x, labels = clusters(60)
    x = x.repeat(1, 12)  # fewer images than features
    x, labels = x[first_of_each(labels, per_class)], labels[first_of_each(labels, per_class)]
    known = 3 * per_class
    head = SelfTraining().fit(x[:known], labels[:known], x[known : known + unlabelled], 3, seed=0)
    assert torch.isfinite(head(x)).all()
    assert accuracy(head, x[:known], labels[:known]) >= 0.6
    same = SelfTraining().fit(x[:1].repeat(known, 1), labels[:known], x[:1].repeat(unlabelled, 1), 3, seed=0)
    assert torch.isfinite(same(x)).all()
    doubled = torch.cat([x, x])[known:]
    assert torch.isfinite(SelfTraining().fit(x[:known], labels[:known], doubled, 3, seed=0)(x)).all()


def test_two_unbalanced_classes() -> None:
    x, labels = clusters(400, classes=2, shares=[9, 1])
    head = SelfTraining().fit(x[:40], labels[:40], x[40:], 2, seed=0)
    test, truth = clusters(400, classes=2, shares=[9, 1], seed=5)
    assert accuracy(head, test, truth) > 0.93
    assert (head(test).argmax(dim=1)[truth == 1] == 1).float().mean() > 0.7


def test_alignment_brings_the_mean_to_the_prior() -> None:
    p = torch.softmax(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    prior = torch.tensor([0.6, 0.3, 0.1])
    torch.testing.assert_close(aligned(p, prior, iterations=100).mean(dim=0), prior, atol=1e-4, rtol=0)
    sure = torch.eye(3)[[0, 0, 0, 1]]
    assert torch.isfinite(aligned(sure, prior)).all()


def test_the_most_confident_of_each_class_are_chosen() -> None:
    confidence, pseudo = torch.tensor([0.9, 0.5, 0.8, 0.6, 0.7]), torch.tensor([0, 0, 0, 1, 1])
    chosen = most_confident(confidence, pseudo, torch.tensor([2.0, 0.2]), share=0.5)
    assert chosen.tolist() == [1, 0, 1, 0, 1]
    assert most_confident(confidence, pseudo, torch.tensor([2.0, 0.2]), share=1.0).tolist() == [1] * 5
