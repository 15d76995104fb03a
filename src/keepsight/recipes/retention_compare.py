"""A comparison of ways to keep what a backbone knew: every variant trained on one task, measured on it and on a suite of others.

Resumed after a kill: a finished cell is not fitted again, and one that failed is tried again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keepsight
from keepsight.backbones.load import load_backbone
from keepsight.core import Dataset, Readout, Result, UserError, processes
from keepsight.core.files import is_sound, said_if_full, seal, sweep, write_text
from keepsight.core.progress import Track, log
from keepsight.core.result import read_results
from keepsight.data.limit import limited
from keepsight.data.load import load_dataset
from keepsight.data.splits import Splits, make_splits
from keepsight.features.device import start_processes
from keepsight.features.extract import Extractor
from keepsight.recipes.folder import SEAL, check_own_folder, environment, log_file, owned
from keepsight.recipes.origin import sketch
from keepsight.recipes.prepare import readable_images
from keepsight.recipes.readout import readout_of
from keepsight.recipes.retention_cells import is_there, read_cell, run_retention_cell
from keepsight.recipes.retention_config import PLAIN, CompareConfig
from keepsight.recipes.retention_fits import UNTOUCHED, Key, Task, Timed
from keepsight.recipes.retention_table import records_of_comparison
from keepsight.recipes.suite import check_suite, load_suite
from keepsight.recipes.sweep_points import split_settings
from keepsight.report.retention import write_retention_reports
from keepsight.report.retention_records import (
    FACTS,
    FAILURES,
    RESULTS,
    CellFailure,
    CompareFacts,
    read_cell_failures,
    read_compare_facts,
)
from keepsight.report.sweep_figure import check_matplotlib


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison that came to its end: its folder, all records, and the cells that failed."""

    path: Path
    results: list[Result]
    failures: list[CellFailure]


def compare_retention(config: CompareConfig, out: str | Path, *, command: str = "") -> Comparison:
    """Train every variant with every method on every seed, measure each on the task and on the suite, and write the tables.

    Args:
        config: See `retention_config`.
        out: The folder; a comparison of the same config goes on there.
        command: What started it, for the page.

    Raises:
        UserError: Bad data, settings or folder, before anything is computed; a cell's own failure is a record and no error.
    """
    start_processes()
    if processes.count() > 1:
        raise UserError("A comparison of retention runs in one process: start it without torchrun.")
    path = Path(out)
    check_own_folder(
        path,
        [config.base.data],
        FACTS,
        "comparison",
        lambda p: CompareConfig.model_validate(read_compare_facts(p).config) == config,
    )
    check_matplotlib()
    if is_sound(path, SEAL):
        log.info("%s is finished already: these are its results", path)
        write_retention_reports(path)
        return Comparison(path, read_results(path / RESULTS), read_cell_failures(path))
    check_suite(config.forgetting, config.base.data_options)
    dataset, trained_on = _task_images(config)
    splits = make_splits(dataset, split_settings(dataset, config.base.split), tuple(range(config.base.seeds)))
    if not len(splits.test):
        raise UserError(f"{dataset.name} has no test images to measure on: hold some out with --test.")
    suite = load_suite(config.forgetting, trained_on, config.base.data_options)
    if not suite.sets:
        raise UserError(
            f"No data set of the suite is left to measure on: {' '.join(suite.notes)} Name others by --suite."
        )
    with contextlib.ExitStack() as held:
        held.enter_context(owned(path))
        sweep(path)
        facts = CompareFacts(
            version=keepsight.__version__,
            command=command,
            config=config.model_dump(mode="json"),
            task=dataset.name,
            sets=tuple(each.name for each in suite.sets),
            notes=suite.notes,
        )
        write_text(path / FACTS, facts.model_dump_json(indent=2) + "\n")  # first of all: it says whose folder this is
        held.enter_context(log_file(path / "log.txt"))
        held.enter_context(said_if_full(path))
        write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        for note in suite.notes:
            log.info("%s", note)
        return _run(_opened(config, path, dataset, splits, suite.sets))


def _task_images(config: CompareConfig) -> tuple[Dataset, tuple[str, ...]]:
    """The images of the task, no more than are asked for, and what is known of the whole data set's."""
    base = config.base
    whole, _ = readable_images(load_dataset(base.data, base.data_options), base.skip_bad)
    if whole.targets is not None:
        raise UserError(f"{whole.name} is multi-label data: a comparison of retention takes one class an image.")
    # Of the whole set, so that a set of the suite that shares other images of it is left out, too: it is no other content.
    trained_on = sketch(whole.images.content_hash(i) for i in range(len(whole.images)))
    pool = config.pool if len(whole.images) > config.pool else None
    return limited(whole, base.split, pool), trained_on


def _opened(config: CompareConfig, path: Path, dataset: Dataset, splits: Splits, sets: Sequence[Dataset]) -> Task:
    backbone = load_backbone(config.base.backbone)
    if config.base.readout != "auto":
        Readout.parse(config.base.readout).resolved(backbone.depth)
    extractor = Extractor(backbone, dataset.images)
    readout = readout_of(config.base, dataset, extractor, splits.draws[0], path)
    context = Timed(config.base, dataset, backbone, readout, extractor, path)
    measured = tuple((each, Extractor(backbone, each.images, cache=extractor.cache)) for each in sets)
    return Task(config, context, splits, measured, backbone.weights_hash())


def keys_of(config: CompareConfig) -> list[Key]:
    """All cells, in an order in which each finds what it is made of."""
    seeds = range(config.base.seeds)
    before = [Key(UNTOUCHED, PLAIN, seed) for seed in seeds]
    return before + [
        Key(method, variant, seed)
        for method in config.base.methods
        for variant in config.variants[method]
        for seed in seeds
    ]


def _run(task: Task) -> Comparison:
    path, keys = task.context.folder, keys_of(task.config)
    there = {key for key in keys if is_there(task, key)}
    log.info("%d cells, %d of them finished before", len(keys), len(there))
    failures = []
    with Track("cells", len(keys), "cells") as track:
        for key in keys:
            if key not in there and (sentence := _sentence(task, key)) is not None:
                failures.append(CellFailure(method=key.method, retain=key.variant, seed=key.seed, sentence=sentence))
            track.advance()
    failed = {(f.method, f.retain, f.seed) for f in failures}
    outcomes = {key: read_cell(task, key) for key in keys if (key.method, key.variant, key.seed) not in failed}
    results = records_of_comparison(task, outcomes)
    write_text(path / RESULTS, "".join(r.model_dump_json() + "\n" for r in results))
    write_text(path / FAILURES, "".join(f.model_dump_json() + "\n" for f in failures))
    write_retention_reports(path)
    if not failures:
        seal(path, [FACTS, RESULTS, FAILURES], SEAL)
    return Comparison(path, results, failures)


def _sentence(task: Task, key: Key) -> str | None:
    """Compute the cell; the sentence of a failure that is the cell's own. Without the untouched backbone there is no comparison."""
    try:
        run_retention_cell(task, key)
    except UserError as error:
        if key.method == UNTOUCHED:
            raise
        log.warning("%s, %s, seed %d: %s", key.method, key.variant, key.seed, error)
        return str(error)
    log.info("%s, %s, seed %d: done", key.method, key.variant, key.seed)
    return None
