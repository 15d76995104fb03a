"""The summary table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from keepsight.core import Result
from keepsight.report.summary import caption, cells, headings, rows


def print_table(results: Sequence[Result], recommended: str | None, out: Console) -> None:
    """Print one row a method; the recommended one is marked."""
    table = Table(title=escape(caption(results)), title_justify="left", title_style="", header_style="bold")
    for i, heading in enumerate(headings(results)):
        table.add_column(heading, justify="left" if i in (0, 3) else "right")
    for row in rows(results):
        mark = " *" if row.method == recommended else ""
        texts = [escape(text) for text in cells(row)]
        table.add_row(texts[0] + mark, *texts[1:], style="bold" if mark else None)
    out.print(table)
