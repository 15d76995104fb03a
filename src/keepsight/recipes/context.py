"""What the fits of a run share: the run's context, one cell, and what a fit gives back. Knows no method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import Backbone, Config, Dataset, Readout, processes
from keepsight.export.model import TunedModel
from keepsight.features.extract import Extractor
from keepsight.recipes.config import MethodName, TuneConfig
from keepsight.recipes.events import Events
from keepsight.train.trackers import Trackers, outside_trackers

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Context:
    """What all cells of a run share; `backbone` is never changed, tuning works on copies."""

    config: TuneConfig
    dataset: Dataset
    backbone: Backbone
    readout: Readout
    extractor: Extractor
    folder: Path

    def checkpoints(self, cell: Cell) -> Path:
        """Where a cell that is being trained keeps its checkpoints."""
        return self.folder / "checkpoints" / cell.method / cell.name

    def labels(self, indices: Indices) -> Tensor:
        """Class indices [N], or the targets [N, K] of multi-label data."""
        return torch.from_numpy(self.dataset.truth[indices])

    def probabilities(self, logits_NK: Tensor) -> Tensor:
        """What logits mean: a softmax over the classes, or in multi-label data a sigmoid of each."""
        return torch.softmax(logits_NK, dim=1) if self.dataset.targets is None else torch.sigmoid(logits_NK)

    @contextlib.contextmanager
    def trackers(self, cell: Cell) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
        """What gets a training's figures, on the main process."""
        if not processes.is_main():
            yield None
            return
        name, config = f"{cell.method}-{cell.name}", self.config
        outside = outside_trackers(config.trackers, self.folder, name, config.model_dump(mode="json"))
        with Trackers([Events(self.folder / "tensorboard" / name), *outside]) as report:
            yield report


@dataclass(frozen=True, slots=True)
class Cell:
    """One fit: its name within the method ('seed-0', 'fold-2'), its images, and where it is measured."""

    method: MethodName
    name: str
    seed: int
    labelled: Indices
    validation: Indices
    unlabelled: Indices
    measured_on: Indices
    keep_model: bool = False

    def folder(self, root: Path) -> Path:
        """Where its outcome lies."""
        return root / "cells" / self.method / self.name


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit gives: the model, its probabilities [N, K] on the cell's `measured_on`, and what training it took.

    The model may be None where the cell does not keep it.
    """

    model: TunedModel | None
    predict: Callable[[], NDArray[np.float32]]
    trainable_parameters: int
    selection: Literal["last", "validation"] = "last"
    selected_step: int = 0
    steps: int = 0


class CellRecord(Config):
    """cell.json: what a finished cell cost and how its weights were selected."""

    selection: Literal["last", "validation"]
    selected_step: int
    steps: int
    trainable_parameters: int
    seconds: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """A finished cell: its record and the probabilities [N, K] on `measured_on`."""

    record: CellRecord
    probabilities: NDArray[np.float64]
