"""A small method of one phase and one of two, their data and a plain optimizer: what the tests of training share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from keepsight.core import Batch, Method
from keepsight.data.streams import Stream
from keepsight.train import FeatureBatches, OptimConfig, TrainConfig


class Classifier(Method):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3))

    def logits(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        return {"cross_entropy": nn.functional.cross_entropy(self.logits(batch.inputs), batch.labels)}


class Adversarial(Classifier):
    """Two phases with an optimizer each."""

    phases = ("critic", "model")
    uses_unlabelled = True

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)

    def parameters_of(self, phase: str) -> list[nn.Parameter]:
        return list((self.critic if phase == "critic" else self.network).parameters())

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        score = self.critic(self.logits(batch.unlabelled)).mean()
        return {"critic": -score} if phase == "critic" else {**super().losses(batch, phase, step), "fool": 0.1 * score}


def batches(batch_size: int = 8, unlabelled: bool = False) -> FeatureBatches:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 6, generator=generator), torch.arange(30) % 3
    extra = Stream(np.arange(20, 30), batch_size, seed=1) if unlabelled else None
    return FeatureBatches(x, y, Stream(np.arange(20), batch_size, seed=0), extra)


SGD = TrainConfig(optim=OptimConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, clip=None, warmup=0.0))


def weights(method: Method) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.parameters()])
