"""`keepsight ui`: finished runs in a browser, on this computer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepsight.cli.speech import stdout


def ui(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs, or runs; 'runs' by default.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
) -> None:
    """List finished runs and show their reports in a browser. Only this computer is answered, and nothing is written.

    [bold]keepsight ui runs/[/bold]
    [bold]keepsight ui runs/ other/runs --no-browser --port 8000[/bold]
    """
    from keepsight.recipes.ui import serve

    def say(address: str) -> None:
        stdout().print(escape(f"Runs at {address}; Ctrl-C ends it"), soft_wrap=True)

    serve(runs or [Path("runs")], port, browser, say)
