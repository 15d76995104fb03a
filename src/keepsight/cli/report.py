"""`keepsight report`: the page of a finished run again, or one page of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepsight.cli.speech import stdout


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, of any kind, or a report.json.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to; by default one run's own folder, and the folder 'report' for several runs."),
    ] = None,
) -> None:
    """Make the page of a finished run again from its records; of several runs, one page that compares them.

    [bold]keepsight report runs/leaves[/bold]
    [bold]keepsight report runs/leaves runs/leaves-2 --out comparison[/bold]
    """
    from keepsight.recipes.report import report as make

    found = make(runs, out)
    console = stdout()
    console.print(escape(found.page.answer), soft_wrap=True)
    console.print(escape(f"Report {found.folder / 'report.html'}"), soft_wrap=True)
