"""A config into a run: data, splits, backbone, readout, cells, records, recommendation, report."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, CollapsedError, Dataset, Readout, Result, UserError, processes
from keepsight.core.files import said_if_full, sweep, write_text
from keepsight.core.progress import log
from keepsight.core.result import read_results
from keepsight.data.load import load_dataset
from keepsight.data.splits import Draw, Splits, folds_of
from keepsight.evaluate.classification import Floats
from keepsight.export.model import Images, Predictions, TunedModel
from keepsight.features.device import start_processes
from keepsight.recipes.cells import Cell, CellOutcome, Context, run_cell
from keepsight.recipes.config import TRAINABLE, MethodName, TuneConfig, as_yaml
from keepsight.recipes.ending import SKIPPED as SKIPPED
from keepsight.recipes.ending import Ending as Ending
from keepsight.recipes.ending import finish_run as finish_run
from keepsight.recipes.folder import (
    check_writable,
    clear,
    is_finished,
    log_file,
    owned,
    run_folder,
)
from keepsight.recipes.forgetting import forgetting_note, forgetting_of_run
from keepsight.recipes.multilabel import said_of, suited
from keepsight.recipes.origin import Origin
from keepsight.recipes.prepare import config_and_images, opened, origin_of, readable_images, splits_of
from keepsight.recipes.recommend import Recommendation, recommend, recommend_by_map
from keepsight.recipes.suite import check_suite
from keepsight.report.page import JSON, read_page
from keepsight.report.run_records import COMMAND
from keepsight.train.trackers import check_trackers


class Run:
    """A finished run.

    Attributes:
        path: Its folder.
        results: All records.
        recommended: The recommended method.
        why: The sentence that says why.
    """

    def __init__(self, path: Path, results: list[Result], recommendation: Recommendation) -> None:
        self.path, self.results = path, results
        self.recommended, self.why = recommendation.method, recommendation.why

    @functools.cached_property
    def model(self) -> TunedModel:
        """The recommended method's model, fitted on the first seed's labels."""
        return TunedModel.load(self.path / "model")

    @functools.cached_property
    def answer(self) -> str:
        """The first sentence of the run's page; "" where the run is of a version without one."""
        return read_page(self.path / JSON).answer if (self.path / JSON).is_file() else ""

    def predict(self, images: Images) -> Predictions:
        """`TunedModel.predict` of the recommended model."""
        return self.model.predict(images)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, recommended={self.recommended!r})"


def load_run(path: str | Path) -> Run:
    """A finished run from its folder; UserError if there is none."""
    folder = Path(path)
    if not is_finished(folder):
        raise UserError(f"There is no finished run in {folder}: start or resume it with keepsight tune --out {folder}.")
    recommendation = Recommendation.model_validate_json((folder / "recommendation.json").read_text(encoding="utf-8"))
    return Run(folder, read_results(folder / "results.jsonl"), recommendation)


def _cells(config: TuneConfig, dataset: Dataset, splits: Splits) -> tuple[list[Cell], list[Cell]]:
    """(cross-validation cells on the first draw's labels, one cell a seed measured on test), method by method."""
    first = splits.draws[0]
    folds = (
        folds_of(dataset, first.labelled, config.selection_folds, first.seed)
        if config.selection_folds >= 2 and len(config.methods) > 1
        else []
    )
    validation = [
        Cell(
            method=method,
            name=f"fold-{i}",
            seed=first.seed,
            labelled=first.labelled[training],
            validation=first.validation,
            unlabelled=first.unlabelled,
            measured_on=first.labelled[held_out],
        )
        for method in config.methods
        for i, (training, held_out) in enumerate(folds)
    ]
    final = [
        Cell(
            method=method,
            name=f"seed-{draw.seed}",
            seed=draw.seed,
            labelled=draw.labelled,
            validation=draw.validation,
            unlabelled=draw.unlabelled,
            measured_on=splits.test,
            keep_model=draw is first,
        )
        for method in config.methods
        for draw in splits.draws
    ]
    return validation, final


def _recommendation(
    dataset: Dataset,
    methods: Sequence[MethodName],
    splits: Splits,
    outcomes: Mapping[tuple[str, str], CellOutcome],
    cv: Sequence[Cell],
) -> Recommendation:
    held_out = {m: [outcomes[m, c.name].probabilities for c in cv if c.method == m] for m in methods}
    predicted: dict[str, Floats] = {m: np.concatenate(parts) for m, parts in held_out.items() if parts}
    indices = np.concatenate([[], *(c.measured_on for c in cv if c.method == methods[0])]).astype(np.int64)
    folds, has_unlabelled = len({c.name for c in cv}), len(splits.draws[0].unlabelled) > 0
    if dataset.targets is not None:
        return recommend_by_map(methods, predicted, dataset.targets[indices], folds)
    wrong: dict[str, NDArray[np.bool_]] = {
        m: probabilities.argmax(axis=1) != dataset.labels[indices] for m, probabilities in predicted.items()
    }
    return recommend(methods, wrong, folds, has_unlabelled)


def tune(
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    command: str = "",
    **settings: Any,
) -> Run:
    """Tune a pretrained model on images, compare the methods, recommend one; everything is saved in one folder.

    Under several processes (torchrun) all call it alike: they share the extraction, the fine-tuning and the measuring.

    Args:
        data: Embedded name ('demo', 'mnist-5k'), folder, file or hub name; images in memory: (images, labels), a data frame, a
            `Dataset`, a data set of `datasets` or torchvision (see `load_dataset`); or a complete config.
        out: The run's folder; see `run_folder` for the default. A killed run is resumed by the same call.
        overwrite: Replace what is in `out`.
        command: What started it, for the page; empty in Python.
        **settings: Settings as in a config file, nested by dictionaries: ``methods=["probe"], split={"labels": 40}``.

    Returns:
        The finished run; `run.model.predict(...)` takes paths, PIL images and arrays.

    Raises:
        UserError: Bad data or settings, said in one sentence.

    Example::

        run = keepsight.tune("leaves/", methods=["probe", "finetune-lora"], backbone={"size": 112})
        print(run.recommended, run.predict("new/leaf.png").labels)
    """
    config, given = config_and_images(data, settings)
    config.check_watched(config.forgetting.limit)
    start_processes()
    path = processes.from_main(lambda: run_folder(config, out, overwrite))
    if not overwrite and processes.from_main(lambda: is_finished(path)):
        log.info("%s is finished already: these are its results (--overwrite runs it again)", path)
        return load_run(path)
    check_trackers(config.trackers)
    with processes.main_writes():
        if processes.is_main():
            check_writable(path)
    # All that can be wrong with data, settings and weights is said before anything is written or removed.
    with processes.main_first():
        whole = given or load_dataset(config.data, config.data_options)
    dataset, skipped = readable_images(whole, config.skip_bad)
    used = suited(config, dataset)
    splits = processes.from_main(lambda: splits_of(config, dataset, path / "splits.json", overwrite))
    with processes.main_first():
        backbone = load_backbone(config.backbone)
    if config.readout != "auto":
        Readout.parse(config.readout).resolved(backbone.depth)
    if any(method in TRAINABLE for method in used.methods):
        check_suite(config.forgetting, config.data_options)
    with contextlib.ExitStack() as held:
        with processes.main_writes():
            if processes.is_main():
                _take(held, path, config, overwrite)
                write_text(path / COMMAND, command + "\n")
                if skipped:
                    write_text(path / SKIPPED, json.dumps([bad.model_dump() for bad in skipped], indent=2) + "\n")
        return _run(used, path, dataset, splits, backbone)


def _take(held: contextlib.ExitStack, path: Path, config: TuneConfig, overwrite: bool) -> None:
    """The folder belongs to this run until `held` is closed, and what is logged goes into it."""
    held.enter_context(owned(path))
    if overwrite:
        clear(path)
    sweep(path)
    write_text(path / "config.yaml", as_yaml(config))  # first of all files: it says whose folder this is
    held.enter_context(log_file(path / "log.txt"))
    held.enter_context(said_if_full(path))


def _run(config: TuneConfig, path: Path, dataset: Dataset, splits: Splits, backbone: Backbone) -> Run:
    context = opened(config, path, dataset, splits, backbone)
    cv, final = _cells(config, dataset, splits)
    outcomes: dict[tuple[str, str], CellOutcome] = {}
    collapsed: dict[MethodName, CollapsedError] = {}
    for cell in [*cv, *final]:
        if cell.method in collapsed:
            continue
        try:
            outcomes[cell.method, cell.name] = outcome = run_cell(context, cell)
        except CollapsedError as error:
            collapsed[cell.method] = error
            log.warning("%s The other methods go on.", error)
            continue
        seen = said_of(outcome.probabilities, dataset, cell.measured_on)
        log.info("%s %s: %s, %.1f s", cell.method, cell.name, seen, outcome.record.seconds)
    origin = origin_of(context)
    methods = [method for method in config.methods if method not in collapsed]
    forgot = _forgotten(context, origin, splits.draws[0], methods)
    with processes.main_writes():
        if processes.is_main():
            if not methods:
                raise next(iter(collapsed.values()))
            cv = [cell for cell in cv if cell.method in methods]
            recommendation = _recommendation(dataset, methods, splits, outcomes, cv)
            sentences = [str(error) for error in collapsed.values()]
            finish_run(context, splits, Ending(methods, outcomes, cv, recommendation, forgot, sentences), origin)
    return load_run(path)


def _forgotten(context: Context, origin: Origin, draw: Draw, methods: Sequence[MethodName]) -> str:
    """What is said of forgetting in the report; every process takes part in the measurement."""
    config = context.config
    if not config.forgetting.measure:
        return ""
    tuned = [method for method in methods if method in TRAINABLE]
    models = [(m, context.folder / "cells" / m / f"seed-{draw.seed}" / "model") for m in tuned]
    own = context.dataset, draw.labelled.tolist()
    measured_on = config.forgetting
    if measured_on.limit is not None:  # not on the images that alpha was chosen on
        measured_on = measured_on.model_copy(update={"part": "report"})
    found = forgetting_of_run(context.folder, context.backbone, origin, models, measured_on, own)
    return forgetting_note(found, [method for method in methods if method not in TRAINABLE])
