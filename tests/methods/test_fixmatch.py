"""FixMatch on tokens: losses against their formulas, its gain, invariances, resumed and on two processes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Batch
from keepsight.methods.fixmatch import FixMatch, FixMatchConfig
from keepsight.train import OptimConfig, TrainConfig, train
from launching import launch
from semi_parts import clusters, first_of_each, fixmatch, fixmatch_batches, views_of
from training_parts import SGD, weights

QUIET = FixMatchConfig(hidden=8, dropout=0.0, noise=0.0, blank=0.0, warmup=0)
FAST = TrainConfig(optim=OptimConfig(lr=5e-3), ema=0.9)


def batch(views: bool = True, unlabelled: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(3)
    x, u, s = (torch.randn(n, 8, generator=generator) for n in (6, unlabelled, unlabelled))
    return Batch(x, torch.tensor([0, 1, 2, 0, 1, 2]), u, s if views else torch.empty(0))


@pytest.mark.parametrize("views", [True, False])
def test_the_losses_are_their_formulas(views: bool) -> None:
    config = QUIET.model_copy(update={"temperature": 0.5, "threshold": 0.5, "weight": 2.0, "momentum": 0.9})
    method, given = fixmatch(config), batch(views)
    with torch.no_grad():
        method.head.last.weight.mul_(8)  # some predictions become confident
    found = method.losses(given, "model", 0)
    torch.testing.assert_close(found["cross_entropy"], F.cross_entropy(method.logits(given.inputs), given.labels))
    p = method.logits(given.unlabelled).softmax(dim=1).detach()
    prior = torch.full((3,), 1 / 3)
    p = p * prior / (0.9 * prior + 0.1 * p.mean(dim=0))
    p = p / p.sum(dim=1, keepdim=True)
    target = p.square() / p.square().sum(dim=1, keepdim=True)
    used = target.amax(dim=1) >= 0.5
    assert 0 < used.sum() < len(used)
    strong = given.strong if views else given.unlabelled
    each = -(target * method.logits(strong).log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(found["pseudo_labels"], 2 * (each * used).mean())


def test_gradients_in_float64() -> None:
    """The pseudo-labels are targets: nothing flows through them, and what flows is the derivative of the loss given them."""
    method = fixmatch(QUIET.model_copy(update={"threshold": 0.0, "momentum": None})).double()
    given = batch()
    given = Batch(given.inputs.double(), given.labels, given.unlabelled.double(), given.strong.double())
    target, _ = method._pseudo_labels(given.unlabelled)
    weight = method.head.last.weight
    torch.stack(list(method.losses(given, "model", 0).values())).sum().backward()

    def loss() -> Tensor:
        pseudo = -(target * method.logits(given.strong).log_softmax(dim=1)).sum(dim=1).mean()
        return F.cross_entropy(method.logits(given.inputs), given.labels) + pseudo

    with torch.no_grad():
        weight[0, 0] += 1e-6
        above = loss()
        weight[0, 0] -= 2e-6
        numeric = (above - loss()) / 2e-6
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad[0, 0], numeric, atol=1e-7, rtol=1e-5)


def test_a_weight_of_zero_and_no_confidence_are_no_pseudo_labels() -> None:
    assert fixmatch(QUIET.model_copy(update={"weight": 0.0})).losses(batch(), "model", 0)["pseudo_labels"] == 0
    assert fixmatch(QUIET.model_copy(update={"threshold": 1.0})).losses(batch(), "model", 0)["pseudo_labels"] == 0
    warming = fixmatch(QUIET.model_copy(update={"threshold": 0.0, "warmup": 9}))
    first, last = (warming.losses(batch(), "model", step)["pseudo_labels"] for step in (0, 9))
    assert last > 5 * first > 0


def test_what_is_drawn_depends_on_seed_and_step_alone() -> None:
    method, other = fixmatch(FixMatchConfig(hidden=8)), fixmatch(FixMatchConfig(hidden=8))
    torch.manual_seed(99)
    one = method.losses(batch(), "model", 4)
    torch.manual_seed(7)
    assert one["cross_entropy"] == other.losses(batch(), "model", 4)["cross_entropy"]
    assert one["cross_entropy"] != other.losses(batch(), "model", 5)["cross_entropy"]


def trained(folder: Path, labelled: int, views: int, config: FixMatchConfig, unlabelled: bool = True) -> FixMatch:
    x, labels = clusters(400)
    order = first_of_each(labels, labelled)
    x, labels = x[order] / 4, labels[order]
    count = len(x) if unlabelled else 3 * labelled
    of_views = [view / 4 for view in views_of(x[:count] * 4, views)] if views else []
    method = fixmatch(config, labels[: 3 * labelled])
    train(method, fixmatch_batches(x[:count], labels[: 3 * labelled], of_views), 150, FAST, folder)
    return method


def accuracy(method: FixMatch) -> float:
    x, labels = clusters(600, seed=9)
    with torch.no_grad():
        return (method.logits(x / 4).argmax(dim=1) == labels).float().mean().item()


def test_unlabelled_images_and_views_help(tmp_path: Path) -> None:
    config = FixMatchConfig(hidden=16, threshold=0.6)
    supervised = config.model_copy(update={"weight": 0.0})
    with_views = accuracy(trained(tmp_path / "a", 2, 3, config))
    assert with_views > accuracy(trained(tmp_path / "b", 2, 3, supervised)) + 0.03
    assert with_views > accuracy(trained(tmp_path / "c", 2, 0, supervised)) + 0.1
    assert accuracy(trained(tmp_path / "d", 2, 0, config)) > 0.6


def test_one_label_a_class_and_no_unlabelled_images_work(tmp_path: Path) -> None:
    assert accuracy(trained(tmp_path / "a", 1, 0, FixMatchConfig(hidden=8), unlabelled=False)) > 0.5
    empty = fixmatch(QUIET).losses(batch(unlabelled=0), "model", 0)
    assert empty["pseudo_labels"] == 0
    assert torch.isfinite(empty["cross_entropy"])


def test_classes_may_be_renamed() -> None:
    permutation = torch.tensor([1, 2, 0])
    plain, renamed = (fixmatch(QUIET.model_copy(update={"threshold": 0.3})) for _ in range(2))
    with torch.no_grad():
        for tensor in (renamed.head.last.weight, renamed.head.last.bias):
            tensor[permutation] = tensor.clone()
    given = batch()
    other = Batch(given.inputs, permutation[given.labels], given.unlabelled, given.strong)
    expected, found = plain.losses(given, "model", 0), renamed.losses(other, "model", 0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_unbalanced_labels_are_the_prior_that_predictions_are_brought_to() -> None:
    method = fixmatch(QUIET.model_copy(update={"momentum": 0.0, "temperature": 1.0}), torch.tensor([0] * 8 + [1]))
    assert method.prior_K.tolist() == pytest.approx([9 / 12, 2 / 12, 1 / 12])
    target, _ = method._pseudo_labels(torch.zeros(50, 8))
    torch.testing.assert_close(target.mean(dim=0), method.prior_K)


def test_a_resumed_run_ends_with_the_same_weights_and_running_mean(tmp_path: Path) -> None:
    config = SGD.model_copy(update={"ema": 0.9, "checkpoint_steps": 3})

    class KilledError(Exception):
        pass

    def kill(step: int, figures: dict[str, float]) -> None:
        if step == 5:
            raise KilledError

    whole, resumed = fixmatch(), fixmatch()
    train(whole, fixmatch_batches(), 9, config, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(fixmatch(), fixmatch_batches(), 9, config, tmp_path / "cut", report=kill)
    train(resumed, fixmatch_batches(), 9, config, tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(resumed.average_K, whole.average_K)
    assert not torch.equal(whole.average_K, whole.prior_K)


SCRIPT = """
import os, sys, torch
from pathlib import Path
from semi_parts import fixmatch, fixmatch_batches
from training_parts import SGD
from keepsight.train import train
out = Path(sys.argv[1])
method = fixmatch()
train(method, fixmatch_batches(), 6, SGD, out / "checkpoints")
if int(os.environ.get("RANK", 0)) == 0:
    torch.save(method.state_dict(), out / "state.pt")
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    states = []
    for count in (1, 2):
        launch(SCRIPT, tmp_path / str(count), count, str(tmp_path / str(count)))
        states.append(torch.load(tmp_path / str(count) / "state.pt", weights_only=True))
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, atol=1e-6, rtol=0)
