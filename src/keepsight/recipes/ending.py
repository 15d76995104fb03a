"""What is made at the end of a run, of `tune` as of `compare`: figures, the recommended model, page and records, the seal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import keepsight
from keepsight.core import UserError, processes
from keepsight.core.files import write_text
from keepsight.core.progress import log
from keepsight.data.scan import BadImage
from keepsight.data.splits import Splits
from keepsight.export.model import TunedModel
from keepsight.recipes.card import write_model_card
from keepsight.recipes.cells import Cell, CellOutcome, Context
from keepsight.recipes.config import TRAINABLE
from keepsight.recipes.context import folder_name
from keepsight.recipes.diagnosis import Outcomes, write_page_records
from keepsight.recipes.folder import finish
from keepsight.recipes.origin import Origin, write_origin
from keepsight.recipes.probe import probe
from keepsight.recipes.probe_settings import ProbingConfig
from keepsight.recipes.recommend import Recommendation
from keepsight.recipes.records import records_of
from keepsight.report.run_records import RunNotes, write_notes
from keepsight.report.tune_page import PROBES, tune_page
from keepsight.report.write import write_page

SKIPPED = "skipped.json"
"""The images that could not be read, where they are skipped."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the records of a run are made of.

    Attributes:
        names: What has a result, from cheap to dear, called as `Cell.title` does.
        outcomes: Of each of their cells, by name and cell.
        held_out: Their cells on held-out labelled images.
        recommendation: Which one.
        forgot: What is said of forgetting.
        without_result: Sentences about what has none.
    """

    names: Sequence[str]
    outcomes: Mapping[tuple[str, str], CellOutcome]
    held_out: Sequence[Cell]
    recommendation: Recommendation
    forgot: str
    without_result: Sequence[str] = ()


def finish_run(context: Context, splits: Splits, ending: Ending, origin: Origin) -> None:
    """Write everything that is made at the end of a run, and mark it as finished; on the main process."""
    path, recommendation = context.folder, ending.recommendation
    results = records_of(context, ending.names, splits, ending.outcomes, ending.held_out)
    write_text(path / "results.jsonl", "".join(r.model_dump_json() + "\n" for r in results))
    chosen = path / "cells" / folder_name(recommendation.method) / f"seed-{splits.draws[0].seed}" / "model"
    TunedModel.load(chosen).save(path / "model", keepsight.__version__)
    write_model_card(path / "model" / "README.md", context, splits, results, recommendation)
    write_origin(path, origin)
    write_origin(path / "model", origin)
    write_text(path / "recommendation.json", recommendation.model_dump_json(indent=2) + "\n")
    skipped = []
    if (path / SKIPPED).is_file():
        skipped = [BadImage.model_validate(bad) for bad in json.loads((path / SKIPPED).read_text(encoding="utf-8"))]
    write_page_records(context, splits, _said(ending), results, recommendation.method, skipped)
    write_notes(path, RunNotes(without_result=tuple(ending.without_result), forgot=tuple(ending.forgot.splitlines())))
    _ask_probes(context, ending.names, splits.draws[0].seed)
    write_page(path, tune_page(path))
    finish(path)


def _ask_probes(context: Context, names: Sequence[str], seed: int) -> None:
    """Ask the first seed's model of each method that changed the backbone what `probes` names, into probe/METHOD of the run."""
    asked, path = context.config.probes, context.folder
    if asked and processes.count() > 1:
        log.warning("Probes are not asked under several processes: keepsight probe %s does it afterwards.", path)
        return
    for name in names if asked else ():
        model = path / "cells" / folder_name(name) / f"seed-{seed}" / "model"
        if name.partition("+")[0] not in TRAINABLE or name == "cnn" or not model.is_dir():
            continue
        suite = context.config.forgetting.suite
        wanted = ProbingConfig(model=str(model), probes=asked, leave_out=True, suite=suite)
        try:
            probe(wanted, path / PROBES / folder_name(name))
        except UserError as error:
            log.warning("%s is not asked the probes: %s", name, error)


def _said(ending: Ending) -> list[Outcomes]:
    """What each method answered: on labelled images when they were held out, and on test images with each seed."""
    made = []
    for name in ending.names:
        cells = [cell for cell in ending.held_out if cell.title == name]
        tested = {
            int(cell.removeprefix("seed-")): outcome.probabilities
            for (title, cell), outcome in ending.outcomes.items()
            if title == name and cell.startswith("seed-")
        }
        made.append(
            Outcomes(
                name=name,
                tuned=name.partition("+")[0] in TRAINABLE,
                rows=np.concatenate([np.empty(0, np.int64), *(cell.measured_on for cell in cells)]),
                held_out=np.concatenate([ending.outcomes[name, c.name].probabilities for c in cells])
                if cells
                else None,
                tested=dict(sorted(tested.items())),
            )
        )
    return made
