"""A comparison of methods on one data set: the cheap ones first, the dear ones as long as they can win; one is recommended.

`compare` is to several ways of tuning, within a time, what `tune` is to a list of methods that are all fitted to the end.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import keepsight
from keepsight.backbones.load import load_backbone
from keepsight.core import Dataset, Readout, UserError, processes
from keepsight.core.files import said_if_full, sweep, write_text
from keepsight.core.progress import log
from keepsight.data.load import load_dataset
from keepsight.features.device import start_processes
from keepsight.recipes.compare_book import Book
from keepsight.recipes.compare_config import LadderConfig
from keepsight.recipes.compare_finals import Finals
from keepsight.recipes.compare_ladder import Ladder
from keepsight.recipes.compare_rules import RULE
from keepsight.recipes.config import as_yaml
from keepsight.recipes.ending import SKIPPED, finish_run
from keepsight.recipes.folder import check_own_folder, is_finished, log_file, owned
from keepsight.recipes.multilabel import suited
from keepsight.recipes.prepare import opened, origin_of, readable_images, splits_of
from keepsight.recipes.run import Run, load_run
from keepsight.recipes.suite import check_suite
from keepsight.recipes.watched_probes import WatchedProbes
from keepsight.report.ladder_records import LADDER, LadderCandidate, LadderRecord, read_ladder
from keepsight.train.trackers import check_trackers


def compare(config: LadderConfig, out: str | Path | None = None, *, command: str = "") -> Run:
    """Compare ways of tuning on the same splits and cached features, from cheap to dear, and recommend one.

    Args:
        config: See `ladder_config`.
        out: The folder; by default runs/compare-NAME, or the first of runs/compare-NAME-2, ... that is free or holds an unfinished
            comparison of the same config. A killed one goes on there, and decides nothing otherwise.
        command: What started it, for the page.

    Returns:
        The finished run, laid out as one of `tune`, with ladder.json beside it.

    Raises:
        UserError: Bad data, settings or folder, before anything is computed; or no candidate could be measured.
    """
    start = time.monotonic()
    start_processes()
    if processes.count() > 1:
        raise UserError("A comparison runs in one process: start it without torchrun.")
    base = config.base
    path = _folder(config) if out is None else Path(out)
    check_own_folder(path, [base.data], LADDER, "comparison", lambda p: _is_same(p, config))
    if is_finished(path):
        log.info("%s is finished already: these are its results", path)
        return load_run(path)
    check_trackers(base.trackers)
    if any(candidate.tuned for candidate in config.candidates):
        check_suite(base.forgetting, base.data_options)
    dataset, skipped = readable_images(load_dataset(base.data, base.data_options), base.skip_bad)
    asked, config = config, _suited(config, dataset)
    splits = splits_of(config.base, dataset, path / "splits.json", overwrite=False)
    backbone = load_backbone(base.backbone)
    if base.readout != "auto":
        Readout.parse(base.readout).resolved(backbone.depth)
    with contextlib.ExitStack() as held:
        held.enter_context(owned(path))
        sweep(path)
        if not (path / LADDER).is_file():  # first of all files: it says whose folder this is
            write_text(path / LADDER, _begun(asked, config, dataset, command).model_dump_json(indent=2) + "\n")
        book = Book(path, config, read_ladder(path), start)
        write_text(path / "config.yaml", as_yaml(config.base))
        held.enter_context(log_file(path / "log.txt"))
        held.enter_context(said_if_full(path))
        if skipped:
            write_text(path / SKIPPED, json.dumps([bad.model_dump() for bad in skipped], indent=2) + "\n")
        for note in config.notes:
            log.info("%s", note)
        context = opened(config.base, path, dataset, splits, backbone)
        if config.base.watched_probes and any(candidate.tuned for candidate in config.candidates):
            WatchedProbes(context)  # what cannot be asked is said now, and the answers are kept
        ladder = Ladder(context, splits, book)
        book.write(held_out=_held_out(ladder))
        origin = origin_of(context)
        finish_run(context, splits, Finals(ladder, origin).run(ladder.climb()), origin)
    return load_run(path)


def _begun(asked: LadderConfig, config: LadderConfig, dataset: Dataset, command: str) -> LadderRecord:
    return LadderRecord(
        version=keepsight.__version__,
        command=command,
        settings=asked.model_dump(mode="json"),
        metric="error" if dataset.targets is None else "mean_average_precision",
        rule=RULE,
        budget=config.budget,
        limit=config.limit,
        candidates=tuple(
            LadderCandidate(name=c.name, method=c.method, retain=c.retain, tuned=c.tuned) for c in config.candidates
        ),
        notes=config.notes,
    )


def _held_out(ladder: Ladder) -> str:
    if not ladder.parts:
        return "nothing"
    return "cross-validation" if ladder.are_folds else "validation images"


def _suited(config: LadderConfig, dataset: Dataset) -> LadderConfig:
    """Without default methods that the data does not suit; UserError where such a method was asked for."""
    base = suited(config.base, dataset)
    kept = tuple(candidate for candidate in config.candidates if candidate.method in base.methods)
    return config.model_copy(update={"base": base, "candidates": kept})


def _is_same(path: Path, config: LadderConfig) -> bool:
    return LadderConfig.model_validate(read_ladder(path).settings) == config


def _folder(config: LadderConfig) -> Path:
    name = Path(config.base.data).resolve().stem if Path(config.base.data).exists() else config.base.data
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
    number = 1
    while True:
        path = Path("runs") / f"compare-{name}{'' if number == 1 else f'-{number}'}"
        if not path.exists():
            return path
        if (path / LADDER).is_file() and not is_finished(path):
            with contextlib.suppress(UserError, ValueError):
                if _is_same(path, config):
                    return path
        number += 1
