"""Content-style: learns, says each loss once, ignores what is weighted zero, resumes, and two processes equal one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import keepsight.train.trainer as trainer
from content_parts import ADAM, CLASSES, EVERYTHING, SGD, problem
from keepsight.core import Batch
from keepsight.methods.content_style import ContentStyle, ContentStyleConfig
from keepsight.train import train
from launching import launch

WEIGHTS = (
    "supervised",
    "content_prior",
    "style_prior",
    "token_prior",
    "reconstruction",
    "propagated",
    "neighbours",
    "marginal",
    "consistency",
)
ALL_LOSSES = set(WEIGHTS)


def a_step(config: ContentStyleConfig) -> dict[str, float]:
    method, batches, *_ = problem(config, steps=1)
    return {name: value.item() for name, value in method.losses(batches(4, 0, 1), "model", 4).items()}


def test_every_weight_is_one_loss_and_scales_it() -> None:
    once = a_step(EVERYTHING)
    assert set(once) == ALL_LOSSES
    for name in WEIGHTS:
        twice = a_step(EVERYTHING.model_copy(update={name: 2 * getattr(EVERYTHING, name)}))
        assert twice[name] == pytest.approx(2 * once[name], rel=1e-5), name
        assert {k: v for k, v in twice.items() if k != name} == pytest.approx(
            {k: v for k, v in once.items() if k != name}
        )


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_zero_is_absent(name: str) -> None:
    """A loss of weight zero is not computed, has no critic, and leaves the gradient that a vanishing weight leaves."""
    gradients = []
    state: dict[str, torch.Tensor] = {}
    for weight in (0.0, 1e-12):
        config = EVERYTHING.model_copy(update={name: weight, "critic_noise": 0.0})
        method, batches, *_ = problem(config, steps=1)
        if weight == 0:
            critic = {"content_prior": "content", "style_prior": "style", "token_prior": "token"}.get(name)
            assert critic is None or critic not in method.critics
            state = {k: v for k, v in method.state_dict().items() if k.startswith(("head.", "critics."))}
        method.load_state_dict(state, strict=False)
        losses = method.losses(batches(4, 0, 1), "model", 4)
        assert (name in losses) == (weight > 0)
        sum(losses.values(), torch.zeros(())).backward()
        gradients.append([p.grad for p in method.head.content_network.parameters()])
    for zero, vanishing in zip(*gradients, strict=True):
        assert zero is not None
        torch.testing.assert_close(zero, vanishing, atol=1e-7, rtol=1e-5)


def test_without_style_and_reconstruction_the_content_is_trained_the_same(tmp_path: Path) -> None:
    """The decomposition's own networks change no random number of the content network's."""
    base = EVERYTHING.model_copy(update={"content_prior": 0.0, "token_prior": 0.0, "style_prior": 0.0})
    found = []
    for update in ({"reconstruction": 0.0}, {"reconstruction": 1e-12}):
        method, batches, z_ND, _ = problem(base.model_copy(update=update))
        train(method, batches, 5, SGD, tmp_path / str(update["reconstruction"]))
        found.append(method.eval().logits(z_ND))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("content", ["soft", "gumbel", "hard"])
@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_it_learns_with_two_labels_a_class(content: str, kind: str, tmp_path: Path) -> None:
    config = EVERYTHING.model_copy(update={"content": content, "reconstruction_kind": kind})
    method, batches, z_ND, truth = problem(config, steps=80)
    train(method, batches, 80, ADAM, tmp_path)
    with torch.no_grad():
        wrong = (method.eval().logits(z_ND).argmax(dim=1) != truth).float().mean().item()
        content_NK, style_NS = method.head.content(z_ND), method.head.style(z_ND)
        made = F.mse_loss(method.head.decode(content_NK, style_NS), z_ND).item()
    assert wrong < 0.05
    assert made < 0.9 * z_ND.square().mean().item()


def test_the_critics_phase_trains_critics_alone_and_the_models_phase_the_rest() -> None:
    method, batches, *_ = problem()
    assert method.phases == ("critic", "model")
    sum(method.losses(batches(0, 0, 1), "critic", 0).values(), torch.zeros(())).backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None) == name.startswith("critics."), name
    critics, model = set(method.parameters_of("critic")), set(method.parameters_of("model"))
    assert not critics & model
    assert critics | model == {p for p in method.parameters() if p.requires_grad}


def test_without_critics_there_is_one_phase() -> None:
    method, *_ = problem(EVERYTHING.model_copy(update={"content_prior": 0.0, "style_prior": 0.0, "token_prior": 0.0}))
    assert method.phases == ("model",)
    assert len(method.critics) == 0


def test_losses_are_a_function_of_the_step(tmp_path: Path) -> None:
    method, batches, *_ = problem()
    one = {k: v.item() for k, v in method.losses(batches(3, 0, 1), "critic", 3).items()}
    torch.randn(100)
    again = {k: v.item() for k, v in method.losses(batches(3, 0, 1), "critic", 3).items()}
    assert one == again
    assert one != {k: v.item() for k, v in method.losses(batches(3, 0, 1), "critic", 4).items()}


def test_renaming_the_classes_renames_the_answer(tmp_path: Path) -> None:
    """Same weights up to the names of the classes, same training: same logits up to the names."""
    order = torch.tensor([2, 0, 1])  # new class k is the old class order[k]
    config = EVERYTHING.model_copy(update={"real_smoothing": 0.0, "critic_noise": 0.0})
    logits = []
    for renamed in (False, True):
        method, batches, z_ND, _ = problem(config)
        # An even prior: which slot of a batch is drawn from which class is then the same up to names.
        method.prior_K.fill_(1 / CLASSES)
        method.running_K.fill_(1 / CLASSES)
        object.__setattr__(method.guide, "prior_K", torch.full((CLASSES,), 1 / CLASSES))
        if renamed:
            with torch.no_grad():
                last = method.head.content_network.layers[-1]
                last.weight.copy_(last.weight[order])
                last.bias.copy_(last.bias[order])
                for first in (method.head.decoder.layers[0], method.critics["content"].layers[0]):
                    first.weight[:, :CLASSES] = first.weight[:, :CLASSES][:, order]
            method.bank_NK = method.bank_NK[:, order]
            object.__setattr__(method.guide, "posteriors_NK", method.guide.posteriors_NK[:, order])
            new_name = order.argsort()
            batches.labels_N = torch.where(batches.labels_N >= 0, new_name[batches.labels_N], -1)
        # Real one-hots: a batch of a multiple of K holds each class as often, whatever its name.
        batches.unlabelled = type(batches.unlabelled)(torch.arange(60).numpy(), 18, 1)  # type: ignore[union-attr]
        train(method, batches, 5, SGD, tmp_path / str(renamed))
        logits.append(method.eval().logits(z_ND))
    torch.testing.assert_close(logits[1], logits[0][:, order], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("labelled", "n", "batch_size"),
    [(3, 60, 8), (6, 6, 8), (4, 60, 32), (3, 3, 1)],
    ids=["one label a class", "no unlabelled", "fewer labels than a batch", "three images"],
)
def test_few_images(labelled: int, n: int, batch_size: int, tmp_path: Path) -> None:
    method, batches, z_ND, truth = problem(labelled=labelled, n=n, batch_size=batch_size, steps=30)
    train(method, batches, 30, ADAM, tmp_path)
    logits = method.eval().logits(z_ND)
    assert torch.isfinite(logits).all()
    assert (logits.argmax(dim=1) == truth)[:labelled].float().mean() > 0.6


def test_duplicated_images_and_no_views(tmp_path: Path) -> None:
    method, batches, z_ND, _ = problem(with_views=False)
    batches.x_VNF[:, 10:40] = batches.x_VNF[:, 10:11]
    train(method, batches, 5, ADAM, tmp_path)
    assert torch.isfinite(method.eval().logits(z_ND)).all()


def test_one_class_is_no_error() -> None:
    config = EVERYTHING.model_copy(update={"propagated": 0.0, "neighbours": 0.0})
    method, *_ = problem(config)
    from keepsight.heads.content_style import ContentStyleHead
    from keepsight.methods.encoder import CachedFeatures
    from keepsight.methods.guide import unguided

    head = ContentStyleHead(6, 6, 1, 16, 2, 8, 16)
    single = ContentStyle(CachedFeatures(), head, unguided(torch.zeros(2, dtype=torch.int64), 1), config, 1, 0)
    z = torch.randn(4, 6)
    batch = Batch(z, torch.zeros(4, dtype=torch.int64), z, z, torch.arange(4))
    for phase in single.phases:
        assert all(torch.isfinite(v) for v in single.losses(batch, phase, 0).values())
    assert method is not single


def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ADAM.model_copy(update={"checkpoint_steps": 3})
    whole, batches, *_ = problem(steps=8)
    train(whole, batches, 8, config, tmp_path / "whole")
    save = trainer.save_checkpoint

    def save_and_die(*args: object, **kwargs: object) -> object:
        save(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    killed, batches, *_ = problem(steps=8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "save_checkpoint", save_and_die)
        train(killed, batches, 8, config, tmp_path / "killed")
    resumed, batches, *_ = problem(steps=8, seed=0)
    train(resumed, batches, 8, config, tmp_path / "killed")
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name


SCRIPT = """
import sys, os, torch
from pathlib import Path
from content_parts import EVERYTHING, SGD, problem
from keepsight.train import train
out = Path(sys.argv[1])
config = EVERYTHING.model_copy(update={"consistency_start": 0.0, "critic_penalty": 0.1, "critic_noise": 0.1, "threshold": 0.3})
method, batches, *_ = problem(config, steps=6)
train(method, batches, 6, SGD, out / "checkpoints")
if int(os.environ.get("RANK", 0)) == 0:
    torch.save(method.state_dict(), out / "end.pt")
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch(SCRIPT, tmp_path / "one", 1, str(tmp_path / "one"))
    launch(SCRIPT, tmp_path / "two", 2, str(tmp_path / "two"))
    one, two = (torch.load(tmp_path / n / "end.pt", weights_only=True) for n in ("one", "two"))
    start = problem(EVERYTHING)[0].state_dict()
    assert not torch.equal(one["head.content_network.layers.0.weight"], start["head.content_network.layers.0.weight"])
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)
