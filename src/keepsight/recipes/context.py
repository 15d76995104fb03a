"""What the fits of a run share: the run's context, one cell, and what a fit gives back. Knows no method."""

from __future__ import annotations

import contextlib
import hashlib
import string
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

_PLAIN_LETTERS = frozenset(string.ascii_lowercase + string.digits + "-.+")


def folder_name(title: str) -> str:
    """A folder's name for what is fitted: `:` and `=` of a retention are spelt out, so that no two share one.

    Example:
        >>> folder_name("finetune-full+procrustes:2")
        'finetune-full+procrustes_3a_2'
    """
    name = "".join(c if c in _PLAIN_LETTERS else f"_{ord(c):x}_" for c in title)
    return name if len(name) <= 100 else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


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
        return self.folder / "checkpoints" / folder_name(cell.title) / cell.name

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
        name, config = f"{folder_name(cell.title)}-{cell.name}", self.config
        outside = outside_trackers(config.trackers, self.folder, name, config.model_dump(mode="json"))
        with Trackers([Events(self.folder / "tensorboard" / name), *outside]) as report:
            yield report


@dataclass(frozen=True, slots=True)
class Cell:
    """One fit: its name within the method ('seed-0', 'fold-2'), its images, and where it is measured.

    `retain` names what holds the backbone back, where that is compared; the fit itself follows the context's config.
    """

    method: MethodName
    name: str
    seed: int
    labelled: Indices
    validation: Indices
    unlabelled: Indices
    measured_on: Indices
    keep_model: bool = False
    retain: str | None = None

    @property
    def title(self) -> str:
        """What records call it: the method, and behind a plus what holds the backbone back."""
        return self.method if self.retain is None else f"{self.method}+{self.retain}"

    def folder(self, root: Path) -> Path:
        """Where its outcome lies."""
        return root / "cells" / folder_name(self.title) / self.name


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
