"""One cell of the table: one method, fitted on one draw of labels, predicting on images it did not see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import keepsight
from keepsight.core import processes
from keepsight.core.files import atomic_directory, is_sound
from keepsight.core.progress import log
from keepsight.evaluate.cost import measured
from keepsight.methods.frozen import KNN, Probe
from keepsight.methods.gaussian_mixture import GaussianMixture
from keepsight.methods.self_training import SelfTraining
from keepsight.methods.semi_supervised import LabelPropagation
from keepsight.methods.view_probe import ViewProbe
from keepsight.recipes.choose import fit_auto
from keepsight.recipes.config import TOGETHER, TRAINABLE, MethodName, TuneConfig
from keepsight.recipes.context import Cell as Cell
from keepsight.recipes.context import CellOutcome as CellOutcome
from keepsight.recipes.context import CellRecord, Fitted
from keepsight.recipes.context import Context as Context
from keepsight.recipes.fit_content_style import fit_content_style, fit_tuned_content_style
from keepsight.recipes.fit_finetune import fit_finetune
from keepsight.recipes.fit_fixmatch import fit_fixmatch, fit_tuned_fixmatch
from keepsight.recipes.fit_frozen import fit_frozen
from keepsight.recipes.fit_scratch import fit_scratch
from keepsight.recipes.within import searches_weight, within_weight

Fit = Callable[[Context, Cell], Fitted]


def _fits(config: TuneConfig) -> dict[MethodName, Fit]:
    """How each method is fitted: the one place that knows all of them."""
    return {
        "knn": partial(fit_frozen, method=KNN(config.knn)),
        "probe": partial(fit_frozen, method=Probe(config.probe)),
        "label-propagation": partial(
            fit_frozen, method=LabelPropagation(config.label_propagation), token=config.label_propagation
        ),
        "view-probe": partial(fit_frozen, method=ViewProbe(config.view_probe), token=config.view_probe),
        "view-propagation": partial(
            fit_frozen, method=LabelPropagation(config.view_propagation), token=config.view_propagation
        ),
        "self-training": partial(fit_frozen, method=SelfTraining(config.self_training), token=config.self_training),
        "gaussian-mixture": partial(
            fit_frozen, method=GaussianMixture(config.gaussian_mixture), token=config.gaussian_mixture
        ),
        "fixmatch": partial(fit_fixmatch, settings=config.fixmatch),
        "content-only": partial(fit_content_style, settings=config.content_only),
        "content-style": partial(fit_content_style, settings=config.content_style),
        "content-style-paper": partial(fit_content_style, settings=config.content_style_paper),
        "auto": partial(fit_auto, run=run_cell),
        "cnn": partial(fit_scratch, settings=config.cnn),
        "finetune-bitfit": partial(fit_finetune, adapter="bitfit", settings=config.finetune_bitfit),
        "finetune-adaptformer": partial(fit_finetune, adapter="adaptformer", settings=config.finetune_adaptformer),
        "finetune-vpt": partial(fit_finetune, adapter="vpt", settings=config.finetune_vpt),
        "finetune-lora": partial(fit_finetune, adapter="lora", settings=config.finetune_lora),
        "finetune-dora": partial(fit_finetune, adapter="lora", settings=config.finetune_dora),
        "finetune-oft": partial(fit_finetune, adapter="oft", settings=config.finetune_oft),
        "finetune-osf": partial(fit_finetune, adapter="osf", settings=config.finetune_osf),
        "finetune-full": partial(fit_finetune, adapter="full", settings=config.finetune_full),
        "fixmatch-lora": partial(fit_tuned_fixmatch, adapter="lora", settings=config.fixmatch_lora),
        "content-style-lora": partial(fit_tuned_content_style, adapter="lora", settings=config.content_style_lora),
        "content-style-full": partial(fit_tuned_content_style, adapter="full", settings=config.content_style_full),
    }


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
        fit = _fits(context.config)[cell.method]
        searched = cell.method in TRAINABLE and cell.method != "cnn" and searches_weight(context)
        fitted = within_weight(context, cell, fit) if searched else fit(context, cell)
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
        if cell.keep_model and fitted.model is not None:
            replace(fitted.model, method=cell.title).save(temporary / "model", keepsight.__version__)
        (temporary / "cell.json").write_text(record.model_dump_json(indent=2))
    shutil.rmtree(context.checkpoints(cell), ignore_errors=True)
