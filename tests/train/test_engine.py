"""Memory that runs out leads to smaller micro-batches of the same batch; precision and sharding are checked before anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from keepsight.core import Batch, UserError
from keepsight.train import train
from keepsight.train.engine import Engine, fitting_accumulation
from training_parts import SGD, Classifier, batches, weights


class Hungry(Classifier):
    """Says what CUDA says when a batch is larger than `room`."""

    room = 3

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        if len(batch.inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().losses(batch, phase, step)


def test_accumulation_doubles_until_it_fits() -> None:
    method, freed = Hungry(), []
    random = torch.get_rng_state()
    found = fitting_accumulation(method, batches(8), Engine("no", "none", ("model",)), lambda: freed.append(1))
    assert found == 4  # 8, 4, then 2 images at a time
    assert len(freed) == 2
    assert all(p.grad is None for p in method.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_not_even_one_image_fits() -> None:
    method = Hungry()
    method.room = 0
    with pytest.raises(UserError, match=r"even with 8 micro-batches.*checkpoint_blocks"):
        fitting_accumulation(method, batches(8), Engine("no", "none", ("model",)))


def test_other_errors_are_not_taken_for_memory() -> None:
    class Broken(Classifier):
        def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting_accumulation(Broken(), batches(8), Engine("no", "none", ("model",)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_and_fsdp_say_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        train(Classifier(), batches(), 1, SGD.model_copy(update={"precision": "fp16"}), tmp_path)
    with pytest.raises(UserError, match="torchrun"):
        train(Classifier(), batches(), 1, SGD.model_copy(update={"sharding": "fsdp"}), tmp_path)


def test_bf16_runs_and_is_another_arithmetic(tmp_path: Path) -> None:
    exact, rough = Classifier(), Classifier()
    train(exact, batches(), 10, SGD, tmp_path / "a")
    train(rough, batches(), 10, SGD.model_copy(update={"precision": "bf16"}), tmp_path / "b")
    assert all(p.dtype == torch.float32 for p in rough.parameters())
    difference = (weights(rough) - weights(exact)).abs().max()
    assert 0 < difference < 0.05
