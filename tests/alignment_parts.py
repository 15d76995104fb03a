"""A small text tower, a view of given features and a plain loop, for tests of the probes that compare images with texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Batch, Readout, Schedule, TextTower, Trainable, View
from keepsight.core.probe import Rows

WIDTH = 64


class FakeTower(TextTower):
    """A random direction for each word; a text is the mean of its words."""

    name, width = "fake", WIDTH

    def encode(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(
            torch.stack([torch.stack([_word(word) for word in text.split()]).mean(0) for text in texts]), dim=1
        )

    def weights_hash(self) -> str:
        return "0"


def _word(word: str) -> Tensor:
    seed = int.from_bytes(word.strip(".").encode()[:7], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class FakeView(View):
    """Features that are given."""

    depth = 2

    def __init__(self, features_NF: Tensor, text: TextTower | None = None) -> None:
        self.features_NF, self.text = features_NF, text

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        return self.features_NF[torch.from_numpy(rows)]

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def embeddings(self, rows: Rows) -> Tensor:
        return F.normalize(self.features_NF[torch.from_numpy(rows)], dim=1)

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


def plain_fit(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    empty = torch.empty(0)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for step in range(schedule.steps):
            rows = torch.randperm(examples, generator=generator)[: schedule.batch_size]
            optimizer.zero_grad()
            loss = sum(model(Batch(rows, empty, empty), "model", step).values(), torch.zeros(()))
            loss.backward()
            optimizer.step()
