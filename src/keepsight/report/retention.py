"""The reports of a comparison of retention, made from the records in its folder: tables, the Pareto picture, one page of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal

import yaml
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from keepsight.core import Result
from keepsight.core.files import atomic_file, write_text
from keepsight.report.forgetting import Drawing, Panel, write_page
from keepsight.report.retention_figure import pareto
from keepsight.report.retention_records import (
    MEAN,
    PLAIN,
    UNTOUCHED,
    CellFailure,
    CompareFacts,
    read_cell_failures,
    read_compare_facts,
    read_compare_records,
)

WIDTH = 220


class _Figures:
    """The records of a comparison by what they say."""

    def __init__(self, records: Sequence[Result]) -> None:
        self._by = {(r.method, r.retain, r.metric, r.split, r.dataset, r.against): r for r in records}
        self.task = next((r.dataset for r in records if r.split == "test"), "")
        self.rows = list(dict.fromkeys((r.method, r.retain or "") for r in records))

    def of(
        self, row: tuple[str, str], metric: str, split: str, dataset: str = "", against: str | None = None
    ) -> Result | None:
        """One record, or None."""
        return self._by.get((*row, metric, split, dataset or self.task, against))


def write_retention_reports(path: Path) -> list[Path]:
    """Write table.txt, table.md, retention.html and the picture as PNG and SVG from the records in a folder; returns them.

    Raises:
        UserError: There are no records, or they are damaged.
    """
    facts, records, failures = read_compare_facts(path), read_compare_records(path), read_cell_failures(path)
    written = []
    svg = b""
    if any(r.method != UNTOUCHED for r in records):
        kinds: tuple[Literal["png", "svg"], ...] = ("png", "svg")
        for kind in kinds:
            file, svg = path / f"pareto.{kind}", pareto(records, kind)
            with atomic_file(file) as temporary:
                temporary.write_bytes(svg)
            written.append(file)
    text = io.StringIO()
    print_retention(facts, records, failures, Console(file=text, width=WIDTH, highlight=False))
    write_text(path / "table.txt", text.getvalue())
    write_text(path / "table.md", retention_markdown(facts, records, failures))
    _write_page(path, facts, records, failures, svg)
    return [*written, path / "table.txt", path / "table.md", path / "retention.html"]


def print_retention(
    facts: CompareFacts, records: Sequence[Result], failures: Sequence[CellFailure], out: Console
) -> None:
    """Print the two tables, and the sentences about them."""
    for panel in panels(facts, records):
        table = Table(title=escape_markup(panel.heading), title_justify="left", title_style="bold", header_style="bold")
        for place, heading in enumerate(panel.header):
            name = place < 2
            table.add_column(escape_markup(heading), justify="left" if name else "right", no_wrap=name, overflow="fold")
        for row in panel.rows:
            table.add_row(*(escape_markup(_line(cell)) for cell in row))
        out.print(table)
        out.print(escape_markup(panel.text), soft_wrap=True)
    for sentence in (*sentences(facts, records), *(_failed(failure) for failure in failures)):
        out.print(escape_markup(_line(sentence)), soft_wrap=True)


def retention_markdown(facts: CompareFacts, records: Sequence[Result], failures: Sequence[CellFailure]) -> str:
    """The same in Markdown."""
    lines = []
    for panel in panels(facts, records):
        lines += [f"## {_text(panel.heading)}", "", _text(panel.text), ""]
        lines.append("| " + " | ".join(_text(heading) for heading in panel.header) + " |")
        lines.append("|---|---|" + "---:|" * (len(panel.header) - 2))
        lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in panel.rows]
        lines.append("")
    lines += [f"- {_text(sentence)}" for sentence in sentences(facts, records)]
    lines += [f"- {_text(_failed(failure))}" for failure in failures]
    return "\n".join(lines) + "\n"


def sentences(facts: CompareFacts, records: Sequence[Result]) -> list[str]:
    """What plain training did with each method, whether there is a share to keep, and what was left out."""
    figures, said = _Figures(records), []
    for method in dict.fromkeys(method for method, _ in figures.rows if method != UNTOUCHED):
        row = (method, PLAIN)
        gain = figures.of(row, "refitted_accuracy_change", "test", against=UNTOUCHED)
        loss = figures.of(row, "probe_accuracy_change", "suite", MEAN, UNTOUCHED)
        if gain is None or loss is None:
            said.append(f"{method} without retention has no result: nothing can be compared with it.")
            continue
        said.append(
            f"{method} without retention changes the accuracy of a refitted probe on {figures.task} by {_points(gain)} points, and "
            f"the suite's mean by {_points(loss)}."
        )
        if loss.ci_high >= 0:
            said.append(
                f"{method} without retention lost nothing on the suite that is surely more than zero: the share kept is "
                f"undefined, and points alone are compared."
            )
    return [*said, *facts.notes]


def panels(facts: CompareFacts, records: Sequence[Result]) -> list[Panel]:
    """The two tables: what was learnt and kept, and what explains it and what it costs."""
    figures = _Figures(records)
    return [_kept(figures, facts), _explained(figures)]


def _kept(figures: _Figures, facts: CompareFacts) -> Panel:
    rows = []
    for row in figures.rows:
        sets = [figures.of(row, "probe_accuracy_change", "suite", name, UNTOUCHED) for name in (*facts.sets, MEAN)]
        share = figures.of(row, "share_kept", "suite", MEAN, PLAIN)
        rows.append(
            [
                *row,
                _percent(figures.of(row, "accuracy", "test")),
                _percent(figures.of(row, "refitted_accuracy", "test")),
                *(_points(record) for record in sets),
                _points(figures.of(row, "probe_accuracy_change", "suite", MEAN, PLAIN)),
                _percent(share, 0),
            ]
        )
    seeds = max((r.seeds for r in figures._by.values()), default=0)
    kind = (
        "resample images, the same ones on both sides of every difference"
        if seeds < 2
        else f"cover {seeds} seeds and images, paired: a difference has the same labels and test images on both sides"
    )
    heading = f"What was learnt on {figures.task}, and what other data lost"
    text = (
        f"Accuracy on the task in per cent, of the head that was trained and of a probe refitted to the tuned features. Then, in "
        f"points, the change of the cross-fitted linear probe on data that was not trained on, from the untouched backbone; 'kept' "
        f"is the difference of its mean from plain training, and the share is 1 - loss / loss of plain training. All with 95 % "
        f"intervals, which {kind}. Nothing was chosen on these data."
    )
    header = [
        "method",
        "retain",
        "trained head %",
        "refitted probe %",
        *facts.sets,
        MEAN,
        "kept, points",
        "share kept %",
    ]
    return Panel(heading, text, header, rows)


def _explained(figures: _Figures) -> Panel:
    rows = []
    for row in figures.rows:
        cka, control = (figures.of(row, name, "suite", MEAN, UNTOUCHED) for name in ("cka", "cka_shuffled"))
        distance = figures.of(row, "weight_distance", "training")
        plain = (row[0], PLAIN)
        rows.append(
            [
                *row,
                _points(figures.of(row, "accuracy_change", "test", against=PLAIN)),
                _points(figures.of(row, "refitted_accuracy_change", "test", against=PLAIN)),
                _points(figures.of(row, "knn_accuracy_change", "suite", MEAN, UNTOUCHED)),
                "-" if cka is None or control is None else f"{_with_seeds(cka)} ({control.value:+.3f})",
                "-" if distance is None else f"{distance.value:.1e}",
                _percent(figures.of(row, "ece", "test")),
                _points(figures.of(row, "probe_ece_change", "suite", MEAN, UNTOUCHED)),
                _cost(figures.of(row, "step_seconds", "training"), figures.of(plain, "step_seconds", "training"), 1000),
                _cost(figures.of(row, "peak_mib", "training"), figures.of(plain, "peak_mib", "training"), 1),
            ]
        )
    text = (
        "Accuracy against plain training, of both heads. k-NN on the suite, mean change from the untouched backbone. CKA of the "
        "readout with the untouched one (debiased, mean of the suite; in brackets the control with shuffled images): it explains "
        "and proves nothing, and is circular for what was trained to keep it. Weights: ||W - W0|| / ||W0||. Calibration error of "
        "the trained head on the task, and the change of that of the probes on the suite. Seconds: the median over steps of the "
        "wall time between their ends, with loading. Memory: the largest resident memory of the process during the fit, sampled; "
        "what earlier fits left in it counts, so it is rough. In brackets the ratio to plain training."
    )
    header = [
        "method",
        "retain",
        "trained head, points",
        "refitted probe, points",
        "k-NN, points",
        "CKA (control)",
        "weights",
        "ECE %",
        "suite's ECE, points",
        "ms a step",
        "peak MiB",
    ]
    return Panel("What explains it, and what it costs", text, header, rows)


def _percent(r: Result | None, digits: int = 1) -> str:
    if r is None:
        return "-"
    value, low, high = (f"{round(100 * v, digits) + 0.0:.{digits}f}" for v in (r.value, r.ci_low, r.ci_high))
    return f"{value} [{low}, {high}]"


def _points(r: Result | None) -> str:
    if r is None:
        return "-"
    value, low, high = (f"{round(100 * v, 1) + 0.0:+.1f}" for v in (r.value, r.ci_low, r.ci_high))
    return f"{value} [{low}, {high}]"


def _with_seeds(r: Result) -> str:
    return f"{r.value:.3f}" if r.interval == "none" else f"{r.value:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]"


def _cost(r: Result | None, plain: Result | None, scale: float) -> str:
    if r is None:
        return "-"
    ratio = f" ({r.value / plain.value:.2f}x)" if plain is not None and plain.value > 0 else ""
    return f"{scale * r.value:,.0f}{ratio}"


def _failed(failure: CellFailure) -> str:
    return f"Failed: {failure.method}, {failure.retain}, seed {failure.seed}: {failure.sentence}"


def _write_page(
    path: Path, facts: CompareFacts, records: Sequence[Result], failures: Sequence[CellFailure], svg: bytes
) -> None:
    lead = [*sentences(facts, records), *(_failed(failure) for failure in failures)]
    drawings = []
    if svg:
        title = "Accuracy on the task against what the suite lost"
        # As a picture of its own: the ids in matplotlib's SVG are then not the page's.
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        image = f'<img alt="{escape(title)}" style="max-width:100%;background:#fff" src="{source}">'
        caption = (
            "To the right is better on the task, upwards is better on other data; the line joins WiSE-FT's mixtures of the plain "
            "training's two ends. Thin lines are 95 % intervals. The same in pareto.svg and pareto.png."
        )
        drawings.append(Drawing(title, caption, image))
    notes = [
        ("Command", facts.command or "started in Python"),
        ("Configuration", yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True)),
    ]
    if (path / "environment.json").is_file():
        notes.append(("Environment", (path / "environment.json").read_text(encoding="utf-8")))
    first, second = panels(facts, records)
    title = f"Retention on {facts.task}, keepsight {facts.version}"
    write_page(path / "retention.html", title, lead, [first, *drawings, second], notes)


def _line(text: str) -> str:
    """One line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _text(text: str) -> str:
    """Any text inside Markdown: one line, and nothing in it is markup."""
    return escape("".join(f"\\{c}" if c in "\\`*_{}#|~$" else c for c in _line(text)), quote=False)
