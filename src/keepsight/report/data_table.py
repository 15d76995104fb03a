"""A data report in a terminal: what was found, counts by class, and the first of each list. Reads `DataReport` only."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from keepsight.data.findings import DataReport

ROWS = 20
"""Rows of a table; the JSON holds all."""

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def report_table(report: DataReport) -> RenderableType:
    """Everything a user should see at once; long lists show their first `ROWS`."""
    blocks: list[RenderableType] = [Text(_heading(report), style="bold")]
    blocks.append(_classes(report))
    if report.bad:
        rows = [(bad.name, str(bad.kind), bad.reason) for bad in report.bad]
        blocks.append(_table("Images that cannot be read", ("image", "kind", "reason"), rows))
    if report.duplicates:
        order = sorted(report.duplicates, key=lambda g: (not g.conflicts, not g.crosses))
        rows = [
            (
                ", ".join(_image(n, p) for n, p in zip(g.names[:4], g.parts[:4], strict=True)),
                str(len(g.names)),
                _labels(g.labels),
            )
            for g in order
        ]
        blocks.append(_table("Equal images", ("images", "number", "labels"), rows))
    if report.near:
        rows = [
            (
                ", ".join(_image(n, p) for n, p in zip(pair.names, pair.parts, strict=True)),
                f"{pair.correlation:.4f}",
                _labels(pair.labels),
            )
            for pair in report.near
        ]
        blocks.append(_table("Nearly equal images", ("images", "correlation", "labels"), rows, report.near_pairs))
    for finding in report.findings:
        blocks.append(Text.assemble((f"{finding.severity}: ", _STYLES[finding.severity]), finding.text))
    if not report.findings:
        blocks.append(Text("Nothing was found wrong."))
    return Group(*blocks)


def _heading(report: DataReport) -> str:
    parts = ", ".join(f"{part} {n:,}" for part, n in report.parts.items() if part)
    text = f"{_shown(report.name)}: {report.images:,} images" + (f" ({parts})" if parts else "")
    text += f", {report.labelled:,} labelled, {len(report.classes):,} classes"
    if report.sizes is not None:
        sides = (f"{low}-{high} (median {middle:g})" for low, middle, high in (report.sizes.width, report.sizes.height))
        text += f"; {' x '.join(sides)} px; {report.sizes.colour:,} coloured, {report.sizes.grey:,} grey"
    return text


def _classes(report: DataReport) -> Group:
    parts = [part for part in ("train", "val", "test", "") if any(part in c.parts for c in report.classes)]
    rows = [(c.name, *(f"{c.parts.get(part, 0):,}" for part in parts)) for c in report.classes]
    return _table("Labelled images by class", ("class", *(part or "images" for part in parts)), rows)


def _table(title: str, headings: Sequence[str], rows: Sequence[tuple[str, ...]], total: int | None = None) -> Group:
    more = (len(rows) if total is None else total) - min(len(rows), ROWS)
    table = Table(header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows[:ROWS]:
        table.add_row(*(escape(_shown(cell)) for cell in row))
    below = [Text(f"and {more:,} more", style="dim")] if more else []
    return Group(Text(title, style="bold"), table, *below)


def _image(name: str, part: str) -> str:
    return f"{_shown(name)} ({part})" if part else _shown(name)


def _labels(labels: Sequence[str | None]) -> str:
    return ", ".join(dict.fromkeys("unlabelled" if label is None else _shown(label) for label in labels))


def _shown(name: str) -> str:
    """Names may hold line breaks or control codes: these are written out."""
    return name if name.isprintable() else repr(name)
