"""A batch goes to a device with everything in it."""

import torch

from keepsight.core import Batch, Target


def test_every_tensor_moves_and_what_is_no_tensor_stays() -> None:
    target = Target(boxes=torch.rand(2, 4), classes=torch.tensor([1, 0]))
    batch = Batch(torch.rand(1, 3, 4, 4), torch.empty(0), torch.empty(0), targets=(target,), task="detection")
    moved = batch.to(torch.device("meta"))
    assert moved.inputs.is_meta and moved.reference.is_meta and moved.targets[0].boxes.is_meta
    assert moved.targets[0].masks.is_meta and moved.task == "detection"
    assert not batch.inputs.is_meta
