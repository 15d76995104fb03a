"""The files of a sweep, made from the records in its folder: the page, tables in text and Markdown, figures for documents."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from keepsight.core.files import atomic_file, write_text
from keepsight.report.sweep_figure import draw, paper_methods
from keepsight.report.sweep_page import sweep_page
from keepsight.report.sweep_records import read_facts, read_failures, read_records
from keepsight.report.sweep_table import SweepTable, tables
from keepsight.report.write import write_page

WIDTH = 132


def write_reports(path: Path, against: str | None = None) -> list[Path]:
    """Write every report of the sweep in a folder, from its records.

    Args:
        path: The folder.
        against: The method that the others are compared with; by default what the sweep was started with.

    Returns:
        The files, without those of the page (`write_page`).

    Raises:
        UserError: There are no records, or they are damaged.
    """
    facts, failures = read_facts(path), read_failures(path)
    found = tables(read_records(path), failures, facts)
    against = against or facts.against
    figures = _write_figures(path, found)
    text = io.StringIO()
    print_sweep(found, against, Console(file=text, width=WIDTH, highlight=False))
    write_text(path / "table.txt", text.getvalue())
    write_text(path / "table.md", markdown(found, against))
    write_page(path, sweep_page(path, against))
    return [*figures, path / "table.txt", path / "table.md"]


def read_tables(path: Path) -> list[SweepTable]:
    """The tables of the sweep in a folder; UserError as in `write_reports`."""
    return tables(read_records(path), read_failures(path), read_facts(path))


def print_sweep(found: Sequence[SweepTable], against: str | None, out: Console) -> None:
    """Print the two tables of every place: errors, and differences seed by seed."""
    for table in found:
        errors, differences = _console_table(table), _console_table(table)
        for family, methods in table.families():
            for target in (errors, differences):
                target.add_row(family, *[""] * len(table.labels), style="dim")
            for method in methods:
                texts = [table.error_text(method, labels) for labels in table.labels]
                cells = [escape_markup(f"{error}\n{below}" if below else error) for error, below in texts]
                errors.add_row(f"  {escape_markup(method)}", *cells)
                said = [escape_markup(table.difference_text(method, labels, against)) for labels in table.labels]
                differences.add_row(f"  {escape_markup(method)}", *said)
        out.print(escape_markup(f"{table.place.dataset}, {table.place.model}"), style="bold")
        out.print(escape_markup(table.caption()))
        out.print(errors)
        if len(table.methods) > 1:
            out.print(escape_markup(table.difference_caption(against)))
            out.print(differences)
        for failure in table.failures:
            where = f"{failure.method}, {failure.labels} labels, seed {failure.seed}"
            out.print(escape_markup(f"failed: {where}: {failure.sentence}"), soft_wrap=True)


def _console_table(table: SweepTable) -> Table:
    made = Table(header_style="bold")
    made.add_column("method")
    for labels in table.labels:
        made.add_column(f"{labels:,} labels", justify="right")
    return made


def markdown(found: Sequence[SweepTable], against: str | None) -> str:
    """The same tables in Markdown."""
    lines = []
    for table in found:
        head = "| method | " + " | ".join(f"{n:,} labels" for n in table.labels) + " |"
        rule = "|---|" + "---:|" * len(table.labels)
        lines += [
            f"## {_text(table.place.dataset)}, {_text(table.place.model)}",
            "",
            _text(table.caption()),
            "",
            head,
            rule,
        ]
        for family, methods in table.families():
            for method in methods:
                texts = [table.error_text(method, n) for n in table.labels]
                cells = [f"{error}, {below}" if below else error for error, below in texts]
                lines.append(f"| {_text(method)} ({family}) | {' | '.join(cells)} |")
        if len(table.methods) > 1:
            lines += ["", _text(table.difference_caption(against)), "", head, rule]
            for _, methods in table.families():
                for method in methods:
                    cells = [table.difference_text(method, n, against).replace("*", "\\*") for n in table.labels]
                    lines.append(f"| {_text(method)} | {' | '.join(cells)} |")
        for f in table.failures:
            lines += ["", f"Failed: {_text(f.method)}, {f.labels} labels, seed {f.seed}: {_text(f.sentence)}"]
        lines.append("")
    return "\n".join(lines)


def _write_figures(path: Path, found: Sequence[SweepTable]) -> list[Path]:
    """For each backbone and size the paper's figure (where its methods are there) and that of all methods, as PNG and SVG."""
    written = []
    for model in dict.fromkeys(table.place.model for table in found):
        of = [table for table in found if table.place.model == model]
        methods = [m for m in of[0].facts.families if any(m in table.methods for table in of)]
        paper = paper_methods(methods)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "figure"
        for kind, shown in (("labels", paper), ("labels-all", methods)):
            if not shown or (kind == "labels-all" and shown == paper):
                continue
            for ending in ("png", "svg"):
                file = path / f"{kind}-{name}.{ending}"
                content = draw(of, shown, "png" if ending == "png" else "svg")
                with atomic_file(file) as temporary:
                    temporary.write_bytes(content)
                written.append(file)
    return written


def _text(text: str) -> str:
    """A user's text inside Markdown: one line, and nothing in it is markup."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return escape("".join(f"\\{c}" if c in "\\`*_{}#|~$" else c for c in line), quote=False)
