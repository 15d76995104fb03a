"""Label propagation on features: its gain, its limits and its invariances."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.methods.frozen import KNN
from keepsight.methods.semi_supervised import LabelPropagation, LabelPropagationConfig


def rings(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three moons on a sphere: near each other, so that a few labels need the unlabelled images between them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    angle = torch.rand(rows, generator=generator) * 5.0
    height = torch.tensor([-0.7, 0.0, 0.7])[labels] + 0.06 * torch.randn(rows, generator=generator)
    return torch.stack([angle.cos(), angle.sin(), height], dim=1), labels


def test_few_labels_and_many_unlabelled_beat_few_labels_alone() -> None:
    x, truth = rings(900)
    labelled = torch.arange(6)
    test, test_truth = rings(300, seed=1)
    head = LabelPropagation().fit(x[labelled], truth[labelled], x[6:], 3, seed=0)
    alone = KNN().fit(x[labelled], truth[labelled], x[6:], 3, seed=0)
    accuracy = (head(test).argmax(dim=1) == test_truth).float().mean()
    assert accuracy > 0.95
    assert accuracy > (alone(test).argmax(dim=1) == test_truth).float().mean() + 0.1


def test_labelled_images_keep_their_labels_and_posteriors_sum_to_one() -> None:
    x, labels = rings(60)
    head = LabelPropagation().fit(x[:9], labels[:9], x[9:], 3, seed=0)
    torch.testing.assert_close(head.votes_NK[:9], F.one_hot(labels[:9], 3).float())
    torch.testing.assert_close(head.votes_NK.sum(dim=1), torch.ones(60))
    assert torch.isfinite(head(x)).all()


def test_classes_may_be_renamed() -> None:
    x, labels = rings(200)
    permutation = torch.tensor([1, 2, 0])
    plain = LabelPropagation().fit(x[:10], labels[:10], x[10:], 3, seed=0)
    renamed = LabelPropagation().fit(x[:10], permutation[labels[:10]], x[10:], 3, seed=0)
    # The calibration folds are dealt out by class index, so the sharpness may differ; the posteriors may not.
    torch.testing.assert_close(renamed.votes_NK[:, permutation], plain.votes_NK)
    torch.testing.assert_close(renamed(x).argmax(dim=1), permutation[plain(x).argmax(dim=1)])


def test_alpha_zero_tells_unlabelled_images_nothing_but_the_prior() -> None:
    x, labels = rings(90)
    head = LabelPropagation(LabelPropagationConfig(alpha=0.0)).fit(x[:6], labels[:6], x[6:], 3, seed=0)
    torch.testing.assert_close(head.votes_NK[6:], torch.full((84, 3), 1 / 3))


@pytest.mark.parametrize("rows", [1, 2, 3, 12])
def test_no_unlabelled_images_and_tiny_graphs_work(rows: int) -> None:
    x, labels = rings(12)
    classes = min(rows, 3)
    head = LabelPropagation().fit(x[:rows], labels[:rows], x[:0], classes, seed=0)
    assert torch.isfinite(head(x)).all()
    assert (head(x[:classes]).argmax(dim=1) == labels[:classes]).float().mean() >= 0.5


def test_identical_images_do_not_break_the_graph() -> None:
    x = torch.ones(30, 4)
    head = LabelPropagation().fit(x[:2], torch.tensor([0, 1]), x[2:], 2, seed=0)
    assert torch.isfinite(head(x)).all()


def test_fitted_sharpness_makes_probabilities_of_new_images_truer() -> None:
    x, labels = rings(900)
    x = x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    head = LabelPropagation().fit(x[:60], labels[:60], x[60:600], 3, seed=0)
    logits, truth = head(x[600:]), labels[600:]
    fitted, plain = F.cross_entropy(logits, truth), F.cross_entropy(logits / head.sharpness, truth)
    assert head.sharpness > 1.4
    assert fitted < plain - 0.02
    best = min(F.cross_entropy(logits / head.sharpness * power, truth).item() for power in torch.linspace(0.5, 8, 76))
    assert fitted < best + 0.05


def test_one_label_a_class_takes_the_default_sharpness() -> None:
    x, labels = rings(100)
    head = LabelPropagation(LabelPropagationConfig(default_sharpness=1.75)).fit(x[:3], labels[:3], x[3:], 3, seed=0)
    assert head.sharpness == 1.75


def test_a_few_labels_that_are_all_right_do_not_ask_for_certainty() -> None:
    x, labels = rings(300)
    head = LabelPropagation().fit(x[:9], labels[:9], x[9:], 3, seed=0)
    assert head.sharpness < 2
