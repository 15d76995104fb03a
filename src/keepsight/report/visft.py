"""The tables of a run of ViSFT, from the records in its folder: in the terminal and table.txt. Knows no page and no picture."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table as Printed

from keepsight.core import Config, Result, UserError
from keepsight.core.files import write_text
from keepsight.core.result import read_results
from keepsight.report.page import Table

FACTS, RESULTS = "visft.json", "results.jsonl"

SAID: dict[str, str] = {
    "box_ap50": "boxes, AP50",
    "box_ap50_agnostic": "boxes without classes, AP50",
    "box_ap": "boxes, AP",
    "mask_ap50": "masks, AP50",
    "mask_ap50_agnostic": "masks without classes, AP50",
    "mask_ap": "masks, AP",
    "bleu4": "captions, BLEU-4",
    "cider": "captions, CIDEr-D",
    "cer": "captions, character error rate",
    "exact": "captions, exact",
}
"""The figures of the tables, in their order; results.jsonl has all."""


class VisftFacts(Config):
    """visft.json: what the folder holds.

    Attributes:
        version: keepsight's.
        command: What started it; empty if it was started in Python.
        config: The run's config.
        data: Name of the data set.
        classes: Names of its categories.
        images: Of each part.
        weights: Hash of the untouched backbone's weights; None in runs of older versions.
    """

    version: str
    command: str
    config: dict[str, Any]
    data: str
    classes: tuple[str, ...]
    images: dict[str, int]
    weights: str | None = None


def read_visft_facts(path: Path) -> VisftFacts:
    """The facts of the run in a folder; UserError if there is none."""
    if not (path / FACTS).is_file():
        raise UserError(f"There is no run of ViSFT in {path}: start one with keepsight visft --out {path}.")
    try:
        return VisftFacts.model_validate_json((path / FACTS).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path / FACTS} is damaged or of another version: choose another folder.") from error


def write_visft_table(path: Path) -> None:
    """Write table.txt from the records in a run's folder."""
    text = io.StringIO()
    out = Console(file=text, width=160, highlight=False)
    print_visft(read_visft_facts(path), read_results(path / RESULTS), read_choice(path), out)
    write_text(path / "table.txt", text.getvalue())


def read_choice(path: Path) -> dict[str, Any] | None:
    """joint/choice.json of a run; None without stage 2."""
    file = path / "joint" / "choice.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def lead_lines(facts: VisftFacts, choice: Mapping[str, Any] | None) -> list[str]:
    """What was measured, and which backbone was kept."""
    counts = ", ".join(f"{part} {count:,}" for part, count in facts.images.items())
    said = [
        f"Images: {counts}; {len(facts.classes)} categories. Figures in per cent, with 95 % intervals over images; one seed."
    ]
    if choice is None:
        said.append("Stage 1 alone: heads on the frozen backbone.")
    elif choice["step"] == 0:
        said.append(
            "Stage 2 was trained, and on validation no rung was better than the untouched backbone: that is what was kept."
        )
    else:
        said.append(
            f"Stage 2: the backbone after {choice['step']} steps was chosen by {choice['rule']} on validation images and other "
            "data; the heads are bit for bit those of stage 1."
        )
    return said


def print_visft(facts: VisftFacts, results: Sequence[Result], choice: Mapping[str, Any] | None, out: Console) -> None:
    """Print the tables."""
    for line in lead_lines(facts, choice):
        out.print(escape_markup(line), soft_wrap=True)
    for table in [*part_tables(results), *([ladder_table(choice)] if choice else [])]:
        printed = Printed(
            title=escape_markup(table.title), title_justify="left", title_style="bold", header_style="bold"
        )
        for place, heading in enumerate(table.headings):
            printed.add_column(escape_markup(heading), justify="left" if not place else "right")
        for row in table.rows:
            printed.add_row(*(escape_markup(text) for text in row))
        out.print(printed)


def part_tables(results: Sequence[Result]) -> list[Table]:
    """One table a part: each figure in stage 1, after stage 2, and its change."""
    tuned = any(is_tuned(r) for r in results)
    by = {(r.split, r.metric, is_tuned(r)): r for r in results}
    tables = []
    for part in dict.fromkeys(r.split for r in results):
        rows = []
        for metric, title in SAID.items():
            before, after = by.get((part, metric, False)), by.get((part, metric, True))
            if before is None:
                continue
            row = [title, cell(before)]
            if tuned:
                change = by.get((part, f"{metric}_change", True))
                row += ["" if after is None else cell(after), "" if change is None else cell(change, signed=True)]
            rows.append(tuple(row))
        headings = ("figure", "frozen backbone", *(("tuned", "change") if tuned else ()))
        n = max((r.n for r in results if r.split == part), default=0)
        tables.append(Table(title=part, caption=f"n = {n:,} images.", headings=headings, rows=tuple(rows)))
    return tables


def is_tuned(r: Result) -> bool:
    """Whether a record is of the backbone after stage 2."""
    return r.method.endswith(" visft")


def cell(r: Result, signed: bool = False) -> str:
    """A figure with its interval: in per cent, CIDEr-D as it is."""
    scale = 1 if r.metric.startswith("cider") else 100
    if np.isnan(r.value):
        return "-"
    sign = "+" if signed else ""
    digits = 2 if scale == 1 else 1
    value, low, high = (f"{scale * v:{sign}.{digits}f}" for v in (r.value, r.ci_low, r.ci_high))
    return f"{value} [{low}, {high}]"


def ladder_table(choice: Mapping[str, Any]) -> Table:
    """The rungs, with what they were chosen by; the chosen one is marked."""
    tasks = list(choice["rungs"][0]["tasks"])
    rows = tuple(
        (
            f"{rung['step']}{' (chosen)' if rung['step'] == choice['step'] else ''}",
            *(f"{100 * rung['tasks'][task]:.1f}" for task in tasks),
            "-" if rung["probes"] is None else f"{rung['probes']:+.1f}",
        )
        for rung in choice["rungs"]
    )
    text = (
        "Every rung on validation images: AP50 of boxes and masks, BLEU-4 of captions, in per cent; points of linear-probe "
        f"accuracy on other data. {choice['trainable_parameters']:,} parameters were trained, {choice['seconds']:.0f} s in all, "
        f"{choice['step_seconds']:.2f} s a step."
    )
    chosen = tuple(i for i, rung in enumerate(choice["rungs"]) if rung["step"] == choice["step"])
    return Table(
        title="Rungs of stage 2", caption=text, headings=("steps", *tasks, "probes, points"), rows=rows, marked=chosen
    )
