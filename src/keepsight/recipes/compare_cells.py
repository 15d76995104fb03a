"""The fits of a comparison: each candidate on each fold and seed, at full length or short. Knows no decision."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

import keepsight
from keepsight.core import Backbone, Dataset, Head
from keepsight.core.files import atomic_directory, is_sound
from keepsight.data.splits import Draw, folds_of
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.cost import measured
from keepsight.export.model import TunedModel
from keepsight.recipes.cells import Cell, CellOutcome, Context, run_cell
from keepsight.recipes.compare_config import Candidate
from keepsight.recipes.config import TRAINABLE, FinetuneSettings, MethodName, ScratchSettings, TuneConfig
from keepsight.recipes.context import CellRecord, Indices
from keepsight.recipes.interpolate import mixed_network, start_head
from keepsight.recipes.semi_settings import SemiSettings

LEAST_EPOCHS = 2
"""Of a short fine-tuning, unless the whole one has fewer."""

BACKWARD = 2
"""Passes' worth of time that the backward pass of an image takes."""


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out labelled images: one part in turn is measured on, the rest is learnt from."""

    training: Indices
    held_out: Indices


def held_out_parts(dataset: Dataset, draw: Draw, folds: int) -> tuple[list[Held], bool]:
    """Folds of the first draw's labelled images; where they allow none, its validation part, if there is one.

    Returns:
        The parts, and whether they are folds.
    """
    if folds >= 2:
        found = folds_of(dataset, draw.labelled, folds, draw.seed)
        if found:
            return [Held(draw.labelled[training], draw.labelled[out]) for training, out in found], True
    return ([Held(draw.labelled, draw.validation)] if len(draw.validation) else []), False


def shortened(config: TuneConfig, share: float) -> TuneConfig:
    """The config with this share of the epochs (and of the least steps) of every method that trains a network on images."""
    if share == 1:
        return config
    update = {}
    for method in TRAINABLE:
        name = method.replace("-", "_")
        whole = getattr(config, name)
        epochs = math.ceil(share * whole.epochs)
        if isinstance(whole, SemiSettings):  # one epoch goes over all images
            short = {"epochs": epochs, "least_steps": math.ceil(share * whole.least_steps)}
        elif isinstance(whole, ScratchSettings):
            short = {"epochs": epochs, "steps": math.ceil(share * whole.steps)}
        else:
            short = {"epochs": min(whole.epochs, max(LEAST_EPOCHS, epochs))}
        update[name] = whole.model_copy(update=short)
    return config.model_copy(update=update)


def fold_cell(candidate: Candidate, draw: Draw, part: Held, name: str, are_folds: bool) -> Cell:
    """The candidate on one held-out part. On the validation part nothing else is chosen there."""
    return Cell(
        method=candidate.method,
        name=name,
        seed=draw.seed,
        labelled=part.training,
        validation=draw.validation if are_folds else draw.validation[:0],
        unlabelled=draw.unlabelled,
        measured_on=part.held_out,
        retain=candidate.retain,
    )


def seed_cell(candidate: Candidate, draw: Draw, test: Indices, keep_model: bool) -> Cell:
    """The candidate on the labelled images of one seed, measured on test."""
    return Cell(
        method=candidate.method,
        name=f"seed-{draw.seed}",
        seed=draw.seed,
        labelled=draw.labelled,
        validation=draw.validation,
        unlabelled=draw.unlabelled,
        measured_on=test,
        keep_model=keep_model,
        retain=candidate.retain,
    )


def fitted(context: Context, candidate: Candidate, cell: Cell) -> CellOutcome:
    """The outcome of a cell of a candidate that is trained itself, at the length that the context's config says."""
    config = context.config.model_copy(update={"retain": candidate.setting})
    return run_cell(replace(context, config=config), cell)


def mixture(
    context: Context, cell: Cell, end: Cell, alphas: Sequence[float], trained: CellOutcome
) -> tuple[CellOutcome, Floats]:
    """What lies between the ends of a plain training, without training again; computed unless it is on disk already.

    Args:
        context: The run's.
        cell: The mixture's; with `keep_model` there must be one alpha.
        end: The plain training's cell, which keeps its model.
        alphas: A points; 0 is the start, 1 the end.
        trained: Of `end`.

    Returns:
        The outcome at the last alpha, and probabilities [A, N, K] at all. Its seconds are those of the training and its own.

    Raises:
        UserError: The training added parts that have no start.
    """
    folder = cell.folder(context.folder)
    if not is_sound(folder):
        with measured() as cost:
            model = TunedModel.load(end.folder(context.folder) / "model")
            start = start_head(context, end)
            curve, made = [], model
            for alpha in alphas:
                made = _as_model(model, *mixed_network(context, start, model, alpha, end.title), cell.title)
                what = f"{cell.title} {cell.name} at {alpha:g}"
                curve.append(made.probabilities(context.dataset.images, cell.measured_on, what=what))
        seconds = trained.record.seconds + cost.seconds
        peak = max(trained.record.peak_mib, cost.peak_mib)
        record = trained.record.model_copy(update={"seconds": seconds, "peak_mib": peak})
        with atomic_directory(folder, sealed=True) as temporary:
            np.save(temporary / "curve.npy", np.stack(curve))
            np.save(temporary / "probabilities.npy", curve[-1])
            if cell.keep_model:
                made.save(temporary / "model", keepsight.__version__)
            (temporary / "cell.json").write_text(record.model_dump_json(indent=2))
    record = CellRecord.model_validate_json((folder / "cell.json").read_text(encoding="utf-8"))
    curve_ANK: Floats = np.load(folder / "curve.npy", allow_pickle=False).astype(np.float64)
    return CellOutcome(record, curve_ANK[-1]), curve_ANK


def _as_model(end: TunedModel, backbone: Backbone, head: Head, title: str) -> TunedModel:
    # Without an adapter of its own: what is left of BA is in the weights.
    return replace(end, method=title, backbone=backbone, head=head, adapter=None)


def drop_model(context: Context, cell: Cell) -> None:
    """Remove a model that was kept for mixtures alone; the cell stays finished whenever this is killed."""
    folder = cell.folder(context.folder)
    if not (folder / "model").is_dir():
        return
    with atomic_directory(folder, sealed=True) as temporary:
        for file in folder.glob("*.*"):
            if file.is_file():
                shutil.copy2(file, temporary)


def work(config: TuneConfig, cell: Cell) -> float:
    """What a cell of a network that is trained on images costs, in forward passes of an image; else images looked at."""
    steps, images = _steps(config, cell.method, len(cell.labelled), len(cell.labelled) + len(cell.unlabelled))
    return (1 + BACKWARD) * steps * images + len(cell.measured_on) + len(cell.labelled)


def _steps(config: TuneConfig, method: MethodName, labelled: int, both: int) -> tuple[int, int]:
    """Optimizer steps and images a step; none for a method that takes no steps."""
    settings = getattr(config, method.replace("-", "_"), None)
    if isinstance(settings, FinetuneSettings):
        return settings.epochs * math.ceil(labelled / settings.batch_size), min(settings.batch_size, labelled)
    if isinstance(settings, ScratchSettings):
        steps = max(settings.steps, settings.epochs * math.ceil(labelled / settings.batch_size))
        return steps, settings.batch_size
    if isinstance(settings, SemiSettings):
        return settings.steps(both), settings.batch_size + 2 * settings.unlabelled_batch_size
    return 0, 0
