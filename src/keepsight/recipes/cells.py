"""One cell of the table: one method, fitted on one draw of labels, predicting on images it did not see."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import keepsight
from keepsight.core import Backbone, Config, Dataset, FeatureMethod, Head, Readout, processes
from keepsight.core.files import atomic_directory, is_sound
from keepsight.core.progress import log
from keepsight.data.streams import Stream
from keepsight.data.transforms import load_batch
from keepsight.evaluate.cost import measured
from keepsight.export.adapter import fused_adapter
from keepsight.export.model import TunedModel
from keepsight.features.extract import Extractor
from keepsight.features.states import States
from keepsight.heads.linear import LinearHead
from keepsight.methods.finetune import Adapter, Finetune
from keepsight.methods.frozen import KNN, Probe
from keepsight.methods.semi_supervised import LabelPropagation
from keepsight.recipes.config import FINETUNED, FinetuneSettings, MethodName, TuneConfig
from keepsight.recipes.events import Events
from keepsight.train import BatchSource, ImageBatches, StateBatches, load_trained_state, train
from keepsight.train.trackers import Trackers, outside_trackers

Indices = NDArray[np.int64]

ADAPTERS: dict[str, Adapter] = {"finetune-bitfit": "bitfit", "finetune-lora": "lora", "finetune-full": "full"}


@dataclass(frozen=True, slots=True)
class Context:
    """What all cells of a run share; `backbone` is never changed, tuning works on copies."""

    config: TuneConfig
    dataset: Dataset
    backbone: Backbone
    readout: Readout
    extractor: Extractor
    folder: Path


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


@dataclass(frozen=True, slots=True)
class _Fitted:
    model: TunedModel
    predict: Callable[[], NDArray[np.float32]]
    trainable_parameters: int
    selection: Literal["last", "validation"] = "last"
    selected_step: int = 0
    steps: int = 0


def run_cell(context: Context, cell: Cell) -> CellOutcome:
    """The cell's outcome, computed unless it is on disk already; a killed cell resumes from its last checkpoint.

    Under several processes all must call it: they fine-tune together; what is solved in closed form is left to the main one.
    """
    folder = cell.folder(context.folder)
    if not processes.from_main(lambda: is_sound(folder)):
        if processes.is_main() and folder.exists():
            log.warning("the finished fit %s is damaged or incomplete and is computed again", folder)
        with processes.main_writes():
            if cell.method in FINETUNED or processes.is_main():
                _compute(context, cell, folder)
    record = CellRecord.model_validate(json.loads((folder / "cell.json").read_text()))
    probabilities = np.load(folder / "probabilities.npy", allow_pickle=False)
    return CellOutcome(record, probabilities.astype(np.float64))


def _compute(context: Context, cell: Cell, folder: Path) -> None:
    with measured() as cost:
        torch.manual_seed(cell.seed)
        fitted = _fit(context, cell)
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
    shutil.rmtree(_checkpoints(context, cell), ignore_errors=True)


def _checkpoints(context: Context, cell: Cell) -> Path:
    return context.folder / "checkpoints" / cell.method / cell.name


def _fit(context: Context, cell: Cell) -> _Fitted:
    config = context.config
    if cell.method == "knn":
        return _fit_frozen(context, cell, KNN(config.knn))
    if cell.method == "probe":
        return _fit_frozen(context, cell, Probe(config.probe))
    if cell.method == "label-propagation":
        return _fit_frozen(context, cell, LabelPropagation(config.label_propagation))
    return _fit_finetune(context, cell, ADAPTERS[cell.method], config.finetuning(cell.method))


def _labels(context: Context, indices: Indices) -> Tensor:
    return torch.from_numpy(context.dataset.labels[indices])


def _fit_head(context: Context, cell: Cell, method: FeatureMethod, unlabelled: Indices) -> Head:
    x_NF = context.extractor.features(cell.labelled, context.readout)
    u_MF = context.extractor.features(unlabelled, context.readout) if len(unlabelled) else x_NF[:0]
    return method.fit(x_NF, _labels(context, cell.labelled), u_MF, len(context.dataset.classes), cell.seed)


def _fit_frozen(context: Context, cell: Cell, method: FeatureMethod) -> _Fitted:
    head = _fit_head(context, cell, method, cell.unlabelled).eval()
    pixels = context.config.data_options.pixels
    model = TunedModel(cell.method, context.backbone, context.readout, head, context.dataset.classes, pixels=pixels)

    def predict() -> NDArray[np.float32]:
        x_NF = context.extractor.features(cell.measured_on, context.readout)
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = torch.softmax(head(x_NF), dim=1).numpy()
        return probabilities

    return _Fitted(model, predict, sum(p.numel() for p in head.parameters()))


def _fit_finetune(context: Context, cell: Cell, adapter: Adapter, settings: FinetuneSettings) -> _Fitted:
    probe = _fit_head(context, cell, Probe(context.config.probe), cell.unlabelled[:0])
    from_states = settings.views > 0 and settings.objective.first_block > 1

    sharded = settings.training.sharding != "none"

    def build() -> Finetune:
        # A copy to be cut into shares is made beside the device, which may hold the weights only once.
        backbone = copy.deepcopy(context.backbone.cpu() if sharded else context.backbone)
        head = copy.deepcopy(probe)
        assert isinstance(head, LinearHead)
        return Finetune(backbone, context.readout, head, adapter, settings.objective, from_states)

    batches = _batches(context, cell, settings, from_states)
    method = build()
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    steps = settings.epochs * math.ceil(len(cell.labelled) / settings.batch_size)
    with _trackers(context, cell) if processes.is_main() else contextlib.nullcontext() as report:
        outcome = train(
            method,
            batches,
            steps,
            settings.training,
            _checkpoints(context, cell),
            partial(_validation_score, context, cell, method) if len(cell.validation) else None,
            report,
            f"{cell.method} {cell.name}",
        )
    if sharded:  # what is cut into shares cannot be merged: go on with a whole one
        device = next(method.parameters()).device
        method = build().to(device)
        load_trained_state(method, outcome.state)
    adapter_alone = fused_adapter(method.peft_model) if method.peft_model is not None else None
    method.merge()
    model = TunedModel(
        cell.method,
        method.backbone.eval(),
        context.readout,
        method.head.eval(),
        context.dataset.classes,
        adapter_alone,
        context.config.data_options.pixels,
    )

    def predict() -> NDArray[np.float32]:
        share = processes.mine(cell.measured_on)
        what = f"{cell.method} {cell.name} predicting"
        return processes.joined(model.probabilities(context.dataset.images, share, what=what))

    return _Fitted(model, predict, trainable, outcome.selection, outcome.selected_step, outcome.steps)


def _trackers(context: Context, cell: Cell) -> Trackers:
    name, config = f"{cell.method}-{cell.name}", context.config
    outside = outside_trackers(config.trackers, context.folder, name, config.model_dump(mode="json"))
    return Trackers([Events(context.folder / "tensorboard" / name), *outside])


def _batches(context: Context, cell: Cell, settings: FinetuneSettings, from_states: bool) -> BatchSource:
    dataset, stream = context.dataset, Stream(cell.labelled, settings.batch_size, cell.seed)
    if not from_states:
        preprocessing, augmentation = context.backbone.preprocessing, settings.augmentation
        return ImageBatches(
            dataset.images, dataset.labels, stream, None, preprocessing, augmentation, cell.seed, settings.views
        )
    states = States(
        _checkpoints(context, cell),
        context.backbone,
        settings.objective.first_block - 1,
        dataset.images,
        cell.labelled,
        settings.augmentation,
        settings.views,
        cell.seed,
    )
    return StateBatches(states, dataset.labels, stream)


def _validation_score(context: Context, cell: Cell, method: Finetune) -> float:
    """Minus the mean cross-entropy (nats) on the validation images: finer than accuracy where they are few.

    Processes take shares of them and exchange the losses. Shares may be uneven, but each process makes the same number of forward
    passes (the last image of a shorter share is taken twice), since a sharded model is gathered by all of them together.
    """
    share = processes.mine(cell.validation)
    longest = math.ceil(len(cell.validation) / processes.count())
    padded = np.concatenate([share, np.repeat(cell.validation[:1], longest - len(share))])
    device = next(method.parameters()).device
    losses = []
    for start in range(0, longest, 64):
        chosen = padded[start : start + 64]
        images = load_batch(context.dataset.images, chosen, context.backbone.preprocessing).to(device)
        with torch.no_grad():
            logits_BK = method.logits(images)
            losses.append(functional.cross_entropy(logits_BK, _labels(context, chosen).to(device), reduction="none"))
    return -float(processes.joined(torch.cat(losses)[: len(share)].float().cpu().numpy()).mean())
