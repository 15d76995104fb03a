"""The reports of a sweep, made from the records in its folder: figures, tables in text and Markdown, and one page of HTML."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from keepsight.core.files import atomic_file, write_text
from keepsight.report.html import STYLE
from keepsight.report.sweep_figure import draw, paper_methods
from keepsight.report.sweep_records import read_facts, read_failures, read_records
from keepsight.report.sweep_table import SweepTable, tables

WIDTH = 132

_MORE_STYLE = """
figure img { width: 100%; max-width: 50rem; background: #fff; }
td small { color: var(--soft); display: block; }
td.best { font-weight: 600; } td.clear { color: var(--mark); }
tr.family td { text-align: left; color: var(--soft); font-size: .85rem; padding-top: .8rem; }
"""


def write_reports(path: Path, against: str | None = None) -> list[Path]:
    """Write every report of the sweep in a folder, from its records.

    Args:
        path: The folder.
        against: The method that the others are compared with; by default what the sweep was started with.

    Returns:
        The files.

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
    write_text(path / "sweep.html", _page(path, found, against, figures))
    return [*figures, path / "table.txt", path / "table.md", path / "sweep.html"]


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


def _page(path: Path, found: Sequence[SweepTable], against: str | None, figures: Sequence[Path]) -> str:
    facts = found[0].facts if found else read_facts(path)
    sets = ", ".join(dict.fromkeys(table.place.dataset for table in found))
    pictures = "".join(_picture(file) for file in figures if file.suffix == ".svg")
    body = "".join(_section(table, against) for table in found)
    seeds = max((table.seeds for table in found), default=0)
    listed = ", ".join(str(seed) for seed in sorted({r.seed for t in found for r in t.records if r.seed is not None}))
    notes = {
        "Command": facts.command or "started in Python",
        "Configuration": yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True),
    }
    if (path / "environment.json").is_file():
        notes["Environment"] = (path / "environment.json").read_text(encoding="utf-8")
    end = "".join(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>" for heading, text in notes.items())
    intervals = (
        "Intervals of errors are 95 % intervals over seeds and test images together; those of differences are 95 % t intervals "
        "over seeds, paired: both methods of a difference learnt from the same labelled images and were tested on the same ones."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>keepsight: error by number of labels</title><style>{STYLE}{_MORE_STYLE}</style></head><body>"
        f"<h1>Error by number of labels</h1><p>{escape(sets)}; keepsight {escape(facts.version)}; {seeds} seeds ({listed}).</p>"
        f'<p class="main">{intervals} No choice was made on test images, except where a caption says so.</p>'
        f"{pictures}{body}{end}</body></html>\n"
    )


def _picture(file: Path) -> str:
    content = base64.b64encode(file.read_bytes()).decode()
    which = "all methods" if file.name.startswith("labels-all-") else "supervised methods and content-style"
    return (
        f'<figure><img alt="Test error against the number of labelled images, {which}" src="data:image/svg+xml;base64,{content}">'
        f"<figcaption>Test error against the number of labelled images, {which}: means over seeds, 95 % intervals over seeds and "
        f"images. Full lines: frozen backbone; broken lines: a network trained on images. The same in {escape(file.name)} and as "
        f"PNG.</figcaption></figure>"
    )


def _section(table: SweepTable, against: str | None) -> str:
    head = "<tr><th>method</th>" + "".join(f"<th>{n:,} labels</th>" for n in table.labels) + "</tr>"
    errors = differences = head
    best = {labels: table.best(labels) for labels in table.labels}
    for family, methods in table.families():
        row = f'<tr class="family"><td colspan="{len(table.labels) + 1}">{escape(family)}</td></tr>'
        errors, differences = errors + row, differences + row
        for method in methods:
            cells = said = ""
            for labels in table.labels:
                error, below = table.error_text(method, labels)
                small = f"<small>{escape(below)}</small>" if below else ""
                cells += f'<td class="{"best" if best[labels] == method else ""}">{escape(error)}{small}</td>'
                text = table.difference_text(method, labels, against)
                said += f'<td class="{"clear" if text.endswith("*") else ""}">{escape(text)}</td>'
            errors += f"<tr><td>{escape(method)}</td>{cells}</tr>"
            differences += f"<tr><td>{escape(method)}</td>{said}</tr>"
    parts = [
        f"<h2>{escape(table.place.dataset)}, {escape(table.place.model)}</h2>",
        f"<p>{escape(table.caption())} Bold: the least error.</p>",
        f'<div class="scroll"><table>{errors}</table></div>',
    ]
    if len(table.methods) > 1:
        parts.append(f"<p>{escape(table.difference_caption(against))}</p>")
        parts.append(f'<div class="scroll"><table>{differences}</table></div>')
    for f in table.failures:
        parts.append(f"<p>Failed: {escape(f.method)}, {f.labels} labels, seed {f.seed}: {escape(f.sentence)}</p>")
    return "".join(parts)


def _text(text: str) -> str:
    """A user's text inside Markdown: one line, and nothing in it is markup."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return escape("".join(f"\\{c}" if c in "\\`*_{}#|~$" else c for c in line), quote=False)
