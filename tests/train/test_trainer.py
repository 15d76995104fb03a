"""The loop: resuming, accumulation, validation, faults; on a real (small) network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keepsight.core import Batch, Method, UserError
from keepsight.train import OptimConfig, TrainConfig, train
from keepsight.train.checkpoint import last_good_checkpoint, trained_state
from keepsight.train.optim import lr_factor
from training_parts import SGD, Adversarial, Classifier, batches, weights


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    seen: list[float] = []
    train(Classifier(), batches(), 60, TrainConfig(), tmp_path, report=lambda _, f: seen.append(f["cross_entropy"]))
    assert len(seen) == 60
    assert np.mean(seen[-10:]) < np.mean(seen[:10])


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("kind", [Classifier, Adversarial])
def test_accumulation_equals_the_large_batch(tmp_path: Path, accumulate: int, kind: type[Method]) -> None:
    # With SGD, since AdamW would hide a wrong scale of the loss.
    whole, parts = kind(), kind()
    start = weights(whole)
    train(whole, batches(unlabelled=True), 5, SGD, tmp_path / "a")
    train(parts, batches(unlabelled=True), 5, SGD.model_copy(update={"accumulate": accumulate}), tmp_path / "b")
    assert (weights(whole) - start).abs().max() > 1e-3
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=0)


def test_sgd_step_equals_the_formula(tmp_path: Path) -> None:
    method, reference = Classifier(), Classifier()
    train(method, batches(), 1, SGD, tmp_path)
    batch = batches()(0, 0, 1)
    nn.functional.cross_entropy(reference.logits(batch.inputs), batch.labels).backward()
    for p, q in zip(method.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


@pytest.mark.parametrize("kind", [Classifier, Adversarial])
def test_stopped_and_resumed_is_bit_identical(tmp_path: Path, kind: type[Method]) -> None:
    config = TrainConfig(checkpoint_steps=7)
    straight = kind()
    torch.manual_seed(5)
    train(straight, batches(unlabelled=True), 20, config, tmp_path / "a")

    class StopError(Exception):
        pass

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 16:
            raise StopError

    torch.manual_seed(5)
    with pytest.raises(StopError):
        train(kind(), batches(unlabelled=True), 20, config, tmp_path / "b", report=stop)
    resumed = kind()
    torch.manual_seed(99)  # the checkpoint's random state must win
    train(resumed, batches(unlabelled=True), 20, config, tmp_path / "b")
    assert torch.equal(weights(resumed), weights(straight))


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[3])
from training_parts import Classifier, batches
from keepsight.train import TrainConfig, train
from pathlib import Path
kill_at = int(sys.argv[2])
def report(step, figures):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
torch.manual_seed(3)
method = Classifier(dropout=0.3)
train(method, batches(), 40, TrainConfig(checkpoint_steps=6), Path(sys.argv[1]), report=report)
torch.save(method.state_dict(), Path(sys.argv[1]) / "end.pt")
"""


def run_killed(folder: Path, kill_at: int) -> int:
    arguments = [sys.executable, "-c", KILLED, str(folder), str(kill_at), str(Path(__file__).parents[1])]
    return subprocess.run(
        arguments, check=False, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).returncode


def test_killed_with_sigkill_and_resumed_ends_bit_identical(tmp_path: Path) -> None:
    assert run_killed(tmp_path / "straight", -1) == 0
    assert run_killed(tmp_path / "killed", 15) == -signal.SIGKILL
    assert run_killed(tmp_path / "killed", 33) == -signal.SIGKILL
    assert run_killed(tmp_path / "killed", -1) == 0
    straight, resumed = (torch.load(tmp_path / n / "end.pt", weights_only=True) for n in ("straight", "killed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_nonfinite_loss_names_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Breaks(Classifier):
        def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
            found = super().losses(batch, phase, step)
            return {name: value * float("nan") if step == 9 else value for name, value in found.items()}

    with pytest.raises(UserError, match=r"step 9.*cross_entropy = nan.*step-00000008 \(step 8\)"):
        train(Breaks(), batches(), 20, TrainConfig(checkpoint_steps=4), tmp_path)


def test_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    method = Classifier()
    train(method, batches(), 20, TrainConfig(checkpoint_steps=6), tmp_path)
    newest = last_good_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 18
    content = bytearray((newest.path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest.path / "model.safetensors").write_bytes(content)
    older = last_good_checkpoint(tmp_path)
    assert older is not None
    assert older.step == 12


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train(Classifier(), batches(), 10, TrainConfig(checkpoint_steps=4), tmp_path)
    with pytest.raises(UserError, match="another training configuration"):
        train(Classifier(), batches(), 12, TrainConfig(checkpoint_steps=4), tmp_path)


def test_validation_keeps_the_best_weights_and_stops_early(tmp_path: Path) -> None:
    method = Classifier()
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.5, 0.6])
    snapshots: list[Tensor] = []

    def validate() -> float:
        snapshots.append(weights(method))
        return next(scores)

    outcome = train(method, batches(), 60, TrainConfig(validate_every=10, patience=3), tmp_path, validate)
    assert (outcome.selection, outcome.selected_step, outcome.steps) == ("validation", 20, 50)
    assert torch.equal(weights(method), snapshots[1])
    assert not torch.equal(snapshots[1], snapshots[-1])


def test_without_validation_the_last_step_is_kept_and_said(tmp_path: Path) -> None:
    outcome = train(Classifier(), batches(), 5, TrainConfig(), tmp_path)
    assert (outcome.selection, outcome.selected_step) == ("last", 5)


def test_checkpoints_hold_only_what_training_changes(tmp_path: Path) -> None:
    method = Classifier()
    method.network[0].requires_grad_(False)
    assert set(trained_state(method)) == {"network.3.weight", "network.3.bias"}


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1 / 3), (1, 2 / 3), (2, 1.0), (6, 0.5), (10, 0.0)], ids=lambda v: f"{v:.2f}"
)
def test_warm_up_and_cosine(step: int, expected: float) -> None:
    assert lr_factor(OptimConfig(warmup=0.2), step, 10) == pytest.approx(expected)


def test_weight_decay_spares_vectors(tmp_path: Path) -> None:
    class Still(Classifier):
        def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
            return {"nothing": 0.0 * sum(p.sum() for p in self.parameters())}

    method = Still()
    with torch.no_grad():
        method.network[0].bias.fill_(1.0)
    before = method.network[0].weight.clone()
    train(method, batches(), 3, TrainConfig(optim=OptimConfig(weight_decay=0.5, lr=0.1)), tmp_path)
    assert torch.equal(method.network[0].bias, torch.ones(16))
    assert method.network[0].weight.abs().sum() < before.abs().sum()


def test_no_precision_may_be_written_as_yaml_reads_it() -> None:
    assert TrainConfig.model_validate({"precision": False}).precision == "no"
