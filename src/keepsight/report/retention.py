"""The files of a comparison of retention, made from the records in its folder: page, tables, Pareto picture for documents."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from keepsight.core import Result
from keepsight.core.files import atomic_file, write_text
from keepsight.report.retention_figure import pareto
from keepsight.report.retention_page import retention_page
from keepsight.report.retention_records import (
    UNTOUCHED,
    CellFailure,
    CompareFacts,
    read_cell_failures,
    read_compare_facts,
    read_compare_records,
)
from keepsight.report.retention_table import failed, retention_tables, sentences
from keepsight.report.write import write_page

WIDTH = 220


def write_retention_reports(path: Path) -> list[Path]:
    """Write the page, table.txt, table.md and the picture as PNG and SVG from the records in a folder; returns all but the page.

    Raises:
        UserError: There are no records, or they are damaged.
    """
    facts, records, failures = read_compare_facts(path), read_compare_records(path), read_cell_failures(path)
    written = []
    if any(r.method != UNTOUCHED for r in records):
        kinds: tuple[Literal["png", "svg"], ...] = ("png", "svg")
        for kind in kinds:
            file, picture = path / f"pareto.{kind}", pareto(records, kind)
            with atomic_file(file) as temporary:
                temporary.write_bytes(picture)
            written.append(file)
    text = io.StringIO()
    print_retention(facts, records, failures, Console(file=text, width=WIDTH, highlight=False))
    write_text(path / "table.txt", text.getvalue())
    write_text(path / "table.md", retention_markdown(facts, records, failures))
    write_page(path, retention_page(path))
    return [*written, path / "table.txt", path / "table.md"]


def print_retention(
    facts: CompareFacts, records: Sequence[Result], failures: Sequence[CellFailure], out: Console
) -> None:
    """Print the two tables, and the sentences about them."""
    for each in retention_tables(facts, records):
        table = Table(title=escape_markup(each.title), title_justify="left", title_style="bold", header_style="bold")
        for place, heading in enumerate(each.headings):
            name = place < 2
            table.add_column(escape_markup(heading), justify="left" if name else "right", no_wrap=name, overflow="fold")
        for row in each.rows:
            table.add_row(*(escape_markup(_line(cell)) for cell in row))
        out.print(table)
        out.print(escape_markup(each.caption), soft_wrap=True)
    for sentence in (*sentences(facts, records), *(failed(failure) for failure in failures)):
        out.print(escape_markup(_line(sentence)), soft_wrap=True)


def retention_markdown(facts: CompareFacts, records: Sequence[Result], failures: Sequence[CellFailure]) -> str:
    """The same in Markdown."""
    lines = []
    for each in retention_tables(facts, records):
        lines += [f"## {_text(each.title)}", "", _text(each.caption), ""]
        lines.append("| " + " | ".join(_text(heading) for heading in each.headings) + " |")
        lines.append("|---|---|" + "---:|" * (len(each.headings) - 2))
        lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in each.rows]
        lines.append("")
    lines += [f"- {_text(sentence)}" for sentence in sentences(facts, records)]
    lines += [f"- {_text(failed(failure))}" for failure in failures]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    """One line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _text(text: str) -> str:
    """Any text inside Markdown: one line, and nothing in it is markup."""
    return escape("".join(f"\\{c}" if c in "\\`*_{}#|~$" else c for c in _line(text)), quote=False)
