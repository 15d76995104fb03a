"""One cell of the table: one method, fitted on one draw of labels, predicting on images it did not see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

import keepsight
from keepsight.core import Config, FeatureMethod, processes
from keepsight.core.files import atomic_directory, is_sound
from keepsight.core.progress import log
from keepsight.data.transforms import AugmentConfig
from keepsight.evaluate.cost import measured
from keepsight.methods.frozen import KNN, Probe
from keepsight.methods.semi_supervised import LabelPropagation
from keepsight.recipes.config import TOGETHER, MethodName, TuneConfig
from keepsight.recipes.context import Cell as Cell
from keepsight.recipes.context import Context as Context
from keepsight.recipes.context import Fitted
from keepsight.recipes.fit_finetune import fit_finetune
from keepsight.recipes.fit_frozen import fit_frozen

Fit = Callable[[Context, Cell], Fitted]


class _Views(Protocol):
    """Settings of a method that may look at augmented views."""

    @property
    def views(self) -> int: ...
    @property
    def augmentation(self) -> AugmentConfig: ...


def _with_views(method: FeatureMethod, settings: _Views) -> Fit:
    return partial(fit_frozen, method=method, views=settings.views, augmentation=settings.augmentation)


def _fits(config: TuneConfig) -> dict[MethodName, Fit]:
    """How each method is fitted: the one place that knows all of them."""
    return {
        "knn": partial(fit_frozen, method=KNN(config.knn)),
        "probe": partial(fit_frozen, method=Probe(config.probe)),
        "label-propagation": _with_views(LabelPropagation(config.label_propagation), config.label_propagation),
        "view-propagation": _with_views(LabelPropagation(config.view_propagation), config.view_propagation),
        "finetune-bitfit": partial(fit_finetune, adapter="bitfit", settings=config.finetune_bitfit),
        "finetune-lora": partial(fit_finetune, adapter="lora", settings=config.finetune_lora),
        "finetune-full": partial(fit_finetune, adapter="full", settings=config.finetune_full),
    }


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


def run_cell(context: Context, cell: Cell) -> CellOutcome:
    """The cell's outcome, computed unless it is on disk already; a killed cell resumes from its last checkpoint.

    Under several processes all must call it: they fine-tune together; what is solved in closed form is left to the main one.
    """
    folder = cell.folder(context.folder)
    if not processes.from_main(lambda: is_sound(folder)):
        if processes.is_main() and folder.exists():
            log.warning("the finished fit %s is damaged or incomplete and is computed again", folder)
        with processes.main_writes():
            if cell.method in TOGETHER or processes.is_main():
                _compute(context, cell, folder)
    record = CellRecord.model_validate(json.loads((folder / "cell.json").read_text()))
    probabilities = np.load(folder / "probabilities.npy", allow_pickle=False)
    return CellOutcome(record, probabilities.astype(np.float64))


def _compute(context: Context, cell: Cell, folder: Path) -> None:
    with measured() as cost:
        torch.manual_seed(cell.seed)
        fitted = _fits(context.config)[cell.method](context, cell)
        probabilities = fitted.predict()
    record = CellRecord(
        selection=fitted.selection,
        selected_step=fitted.selected_step,
        steps=fitted.steps,
        trainable_parameters=fitted.trainable_parameters,
        seconds=cost.seconds,
        peak_mib=cost.peak_mib,
    )
    if not processes.is_main():
        return
    with atomic_directory(folder, sealed=True) as temporary:
        np.save(temporary / "probabilities.npy", probabilities)
        if cell.keep_model:
            fitted.model.save(temporary / "model", keepsight.__version__)
        (temporary / "cell.json").write_text(record.model_dump_json(indent=2))
    shutil.rmtree(context.checkpoints(cell), ignore_errors=True)
