"""The tables of a run of probes, made from the records in its folder: in the terminal and table.txt. Knows no probe and no page."""

from __future__ import annotations

import io
from collections.abc import Sequence
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

FACTS, RESULTS = "probe.json", "results.jsonl"
CHANGE = "_change"


class ProbeFacts(Config):
    """probe.json: what the folder holds.

    Attributes:
        version: keepsight's.
        command: What started it; empty if it was started in Python.
        config: The run's config.
        model: What the network is called.
        other: What is compared with it is called; None without a comparison.
        against: The same in records ("untouched").
        weights: Hashes of both, at their own input size.
        notes: What was left out, and why.
    """

    version: str
    command: str
    config: dict[str, Any]
    model: str
    other: str | None
    against: str | None
    weights: tuple[str, ...]
    notes: tuple[str, ...]


def read_probe_facts(path: Path) -> ProbeFacts:
    """The facts of the run in a folder; UserError if there is none, or they are damaged."""
    if not (path / FACTS).is_file():
        raise UserError(f"There is no run of probes in {path}: start one with keepsight probe --out {path}.")
    try:
        return ProbeFacts.model_validate_json((path / FACTS).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path / FACTS} is damaged or of another version: choose another folder.") from error


def write_probe_table(path: Path) -> None:
    """Write table.txt from the records in a run's folder."""
    text = io.StringIO()
    print_probes(read_probe_facts(path), read_results(path / RESULTS), Console(file=text, width=160, highlight=False))
    write_text(path / "table.txt", text.getvalue())


def print_probes(facts: ProbeFacts, results: Sequence[Result], out: Console) -> None:
    """Print the tables."""
    for line in (*lead_lines(facts), *facts.notes):
        out.print(escape_markup(line), soft_wrap=True)
    for table in probe_tables(facts, results):
        printed = Printed(
            title=escape_markup(table.title), title_justify="left", title_style="bold", header_style="bold"
        )
        for place, heading in enumerate(table.headings):
            printed.add_column(escape_markup(heading), justify="left" if place < 3 else "right", overflow="fold")
        for row in table.rows:
            printed.add_row(*(escape_markup(text) for text in row))
        out.print(printed)


def lead_lines(facts: ProbeFacts) -> list[str]:
    """What was asked, and of which networks."""
    said = [
        "Tasks that no tuning saw, asked of frozen features; heads are trained alike for every network. 95 % intervals."
    ]
    if facts.other is not None:
        said.append(
            f"Before: {facts.other}. After: {facts.model}. The difference is of the same test items and seeds, in points."
        )
    if facts.config.get("shuffled"):
        said.append("Control: heads learnt from shuffled targets, so that every figure should be at chance.")
    return said


def probe_tables(facts: ProbeFacts, results: Sequence[Result]) -> list[Table]:
    """Headlines, then what stands behind them."""
    made = []
    for detail, title in ((False, "Probes"), (True, "Behind the figures: types, baselines")):
        chosen = [r for r in results if r.detail == detail]
        if chosen:
            made.append(_table(title, facts, chosen))
    return made


def figure_name(r: Result) -> str:
    """A metric in words, with or without its change."""
    return r.metric.removesuffix(CHANGE).replace("_", " ")


def _table(title: str, facts: ProbeFacts, results: Sequence[Result]) -> Table:
    of = {(r.method, r.dataset, r.metric, r.backbone): r for r in results}
    keys = dict.fromkeys((r.method, r.dataset, r.metric.removesuffix(CHANGE)) for r in results)
    rows = []
    for probe, dataset, metric in keys:
        after = of.get((probe, dataset, metric, facts.model))
        before = None if facts.other is None else of.get((probe, dataset, metric, facts.other))
        change = of.get((probe, dataset, f"{metric}{CHANGE}", facts.model))
        there = after or before
        if there is None:
            continue
        arrow = " (lower is better)" if there.better == "lower" else ""
        row = [probe, f"{figure_name(there)}{arrow}", dataset, f"{there.n:,}", str(there.size or "")]
        row += ["-" if there.chance is None else f"{100 * there.chance:.1f}"]
        if facts.other is not None:
            row += [cell(before), cell(after), cell(change, signed=True)]
        else:
            row += [cell(after)]
        rows.append(tuple(row))
    columns = ("before", "after", "difference") if facts.other is not None else ("found",)
    return Table(
        title=title,
        caption="In per cent; n test items, the backbone's input in px.",
        headings=("probe", "figure", "data", "n", "px", "chance", *columns),
        rows=tuple(rows),
        filtered=len(rows) > 12,
    )


def cell(record: Result | None, signed: bool = False) -> str:
    """A figure with its interval, in per cent; a dash where there is none."""
    if record is None or not np.isfinite(record.value):
        return "-"
    sign = "+" if signed else ""
    # Adding zero turns a rounded -0.0 into 0.0.
    value, low, high = (round(100 * v, 1) + 0.0 for v in (record.value, record.ci_low, record.ci_high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
