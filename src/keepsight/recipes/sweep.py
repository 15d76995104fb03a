"""A sweep over label counts: all points prepared, all cells fitted, records and reports written; resumed after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keepsight
from keepsight.core import Result, UserError, processes
from keepsight.core.files import is_sound, said_if_full, seal, write_text
from keepsight.core.files import sweep as remove_leftovers
from keepsight.core.progress import Track, log
from keepsight.core.result import read_results
from keepsight.features.device import start_processes
from keepsight.recipes.cells import CellOutcome, run_cell
from keepsight.recipes.config import MethodName
from keepsight.recipes.folder import SEAL, check_own_folder, environment, log_file, owned
from keepsight.recipes.records import on_test
from keepsight.recipes.sweep_check import checked
from keepsight.recipes.sweep_config import SweepConfig, family
from keepsight.recipes.sweep_points import Opened, Point, cell_of, describe, prepare
from keepsight.recipes.sweep_workers import in_parallel
from keepsight.report.sweep import write_reports
from keepsight.report.sweep_figure import check_matplotlib
from keepsight.report.sweep_records import FACTS, FAILURES, RESULTS, Failure, SweepFacts, read_facts, read_failures
from keepsight.train.trackers import check_trackers


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep that came to its end: its folder, all records, and the cells that failed."""

    path: Path
    results: list[Result]
    failures: list[Failure]


@dataclass(frozen=True, slots=True)
class _Fit:
    """One cell to be fitted."""

    point: Point
    method: MethodName
    seed: int

    @property
    def folder(self) -> Path:
        return self.point.folder / "cells" / self.method / f"seed-{self.seed}"


class _Here:
    """What this process has opened; a worker keeps it from one task to the next."""

    opened: Opened | None = None


def _fit(fit: _Fit) -> str | None:
    """Fit the cell, unless it is there; the sentence of a failure that is the cell's own (a training that collapsed)."""
    _Here.opened = opened = _Here.opened or Opened()
    context, splits = opened.context(fit.point)
    try:
        run_cell(context, cell_of(fit.method, fit.seed, splits))
    except UserError as error:
        return str(error)
    return None


def sweep_label_counts(
    config: SweepConfig,
    out: str | Path,
    *,
    jobs: int | None = None,
    against: str | None = None,
    command: str = "",
) -> Sweep:
    """Fit every method at every point of a sweep on every seed, and write records, tables, figures and a page into one folder.

    All label counts of one data set share test images, and of one seed the fewer labels are among the more. Methods on cached
    features are fitted in several processes of one thread each; those that train a network one after the other.
    A killed sweep goes on by the same call, and the cells that failed are tried again.

    Args:
        config: See `sweep_config`.
        out: The folder.
        jobs: Processes; as many as there are cores by default.
        against: The method that the others are compared with (see `report.sweep_table.reference`).
        command: What started it, for the page.

    Raises:
        UserError: Bad data, settings or folder, before anything is computed; a cell's own failure is a record and no error.
    """
    start_processes()
    if processes.count() > 1:
        raise UserError("A sweep starts its own processes: run it without torchrun, with --jobs.")
    path = Path(out)
    check_own_folder(
        path, config.data, FACTS, "sweep", lambda p: SweepConfig.model_validate(read_facts(p).config) == config
    )
    check_trackers(config.base.trackers)
    check_matplotlib()
    if against is not None and against not in config.base.methods:
        raise UserError(f"--against {against} is not among the methods of the sweep: {', '.join(config.base.methods)}.")
    facts = SweepFacts(
        version=keepsight.__version__,
        command=command,
        families={method: family(method) for method in config.base.methods},
        against=against,
        config=config.model_dump(mode="json"),
    )
    if is_sound(path, SEAL):
        log.info("%s is finished already: these are its results", path)
        write_reports(path, against)
        return Sweep(path, read_results(path / RESULTS), read_failures(path))
    opened = Opened()
    points, _ = checked(config, path, opened)
    with contextlib.ExitStack() as held:
        held.enter_context(owned(path))
        remove_leftovers(path)
        write_text(path / FACTS, facts.model_dump_json(indent=2) + "\n")  # first of all: it says whose folder this is
        held.enter_context(log_file(path / "log.txt"))
        held.enter_context(said_if_full(path))
        write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        return _run(config, path, points, opened, jobs or cores())


def _run(config: SweepConfig, path: Path, points: Sequence[Point], opened: Opened, jobs: int) -> Sweep:
    fits = [
        _Fit(p, method, seed) for p in points for method in config.base.methods for seed in range(config.base.seeds)
    ]
    there = {fit for fit in fits if is_sound(fit.folder)}
    left = [fit for fit in fits if fit not in there]
    log.info("%d cells, %d of them finished before", len(fits), len(there))
    for point in dict.fromkeys(fit.point for fit in left):
        prepare(point, opened)
    failed = _fit_all(left, opened, jobs)
    results = [result for point in points for result in _records(point, config, opened, failed)]
    failures = [_failure(fit, sentence, opened) for fit, sentence in failed.items()]
    write_text(path / RESULTS, "".join(r.model_dump_json() + "\n" for r in results))
    write_text(path / FAILURES, "".join(f.model_dump_json() + "\n" for f in failures))
    write_reports(path)
    if not failures:
        seal(path, [FACTS, RESULTS, FAILURES], SEAL)
    return Sweep(path, results, failures)


def _fit_all(fits: Sequence[_Fit], opened: Opened, jobs: int) -> dict[_Fit, str]:
    """Fit them; the sentences of those that failed."""
    failed = {}
    _Here.opened = opened
    try:
        with Track("cells", len(fits), "cells") as track:
            for stage, parallel in _stages(fits):
                fitted = in_parallel(_fit, stage, jobs) if parallel else ((fit, _fit(fit)) for fit in stage)
                with contextlib.closing(fitted):
                    for fit, sentence in fitted:
                        _say(fit, sentence)
                        track.advance()
                        if sentence is not None:
                            failed[fit] = sentence
    finally:
        _Here.opened = None
    return failed


def _stages(fits: Sequence[_Fit]) -> list[tuple[list[_Fit], bool]]:
    """What may be fitted at the same time, one stage after the other, and whether in several processes.

    `auto` comes last: it takes the fits of its candidates where they are there, and two processes must not fit the same.
    """
    auto = [fit for fit in fits if fit.method == "auto"]
    frozen = [fit for fit in fits if fit.method != "auto" and family(fit.method) == "frozen"]
    trainable = [fit for fit in fits if fit.method != "auto" and family(fit.method) == "trainable"]
    trains = any(family(method) == "trainable" for fit in auto for method in fit.point.config.auto.candidates)
    return [(frozen, True), (trainable, False), (auto, not trains)]


def _say(fit: _Fit, sentence: str | None) -> None:
    where = "/".join(fit.point.folder.parts[-3:])
    log.log(30 if sentence else 20, "%s %s seed-%d: %s", where, fit.method, fit.seed, sentence or "done")


def _records(point: Point, config: SweepConfig, opened: Opened, failed: dict[_Fit, str]) -> list[Result]:
    context, splits = opened.context(point)
    made: list[Result] = []
    for method in config.base.methods:
        of = []
        for draw in splits.draws:
            if _Fit(point, method, draw.seed) not in failed:
                outcome: CellOutcome = run_cell(context, cell_of(method, draw.seed, splits))
                of.append((draw, outcome))
        made += on_test(context, method, splits.test, of)
    log.info("%s: measured", describe(point, context.dataset, context.backbone))
    labels = point.config.split.labels or 0  # those that are given; a validation part is taken out of them
    size = context.backbone.preprocessing.size
    return [result.model_copy(update={"size": size, "labels": labels}) for result in made]


def _failure(fit: _Fit, sentence: str, opened: Opened) -> Failure:
    backbone = opened.backbone(fit.point)
    return Failure(
        dataset=opened.dataset(fit.point).name,
        backbone=backbone.name,
        size=backbone.preprocessing.size,
        method=fit.method,
        labels=fit.point.config.split.labels or 0,
        seed=fit.seed,
        sentence=sentence,
    )


def cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
