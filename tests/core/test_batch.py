"""A batch goes to a device with everything in it."""

import torch

from keepsight.core import Batch, Target


def test_every_tensor_moves_and_what_is_no_tensor_stays() -> None:
    target = Target(boxes=torch.rand(2, 4), classes=torch.tensor([1, 0]))
    batch = Batch(torch.rand(1, 3, 4, 4), torch.empty(0), torch.empty(0), targets=(target,), task="detection")
    moved = batch.to(torch.device("meta"))
    tensors = (moved.inputs, moved.reference, moved.targets[0].boxes, moved.targets[0].masks)
    assert all(each.is_meta for each in tensors)
    assert moved.task == "detection"
    assert not batch.inputs.is_meta
