"""The command that shows what a content-style model calls style."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli.complete import data_names
from keepsight.cli.models import ModelArgument, SkipBad
from keepsight.cli.speech import DataSettings
from keepsight.core.errors import UserError


def style(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(help="Images: anything that tune takes.", autocompletion=data_names)],
    out: Annotated[Path, typer.Option(help="Folder for style.html and style.json.")],
    settings: DataSettings = None,
    images: Annotated[int, typer.Option(min=2, max=40, help="How many images are swapped with one another.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    nuisances: Annotated[
        Path | None,
        typer.Option(help="CSV of what else is known: names of images, then one column each (angle, camera, ...)."),
    ] = None,
    skip_bad: SkipBad = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier look in --out.")] = False,
) -> None:
    """Look at what a content-style model calls style: swapped, decoded and nearest images on one page, and figures.

    [bold]keepsight style runs/leaves leaves/ --out leaves-style/[/bold]
    """
    if any((out / name).exists() for name in ("style.html", "style.json")) and not overwrite:
        raise UserError(
            f"There is a look at style in {out} already: choose another --out, or replace it with --overwrite."
        )
    from keepsight.recipes.config import data_options
    from keepsight.recipes.style import look_at_style

    options = data_options(settings or [])
    look = look_at_style(model, data, images=images, seed=seed, nuisances=nuisances, skip_bad=skip_bad, options=options)
    look.write(out)
    swaps = look.findings.swaps
    print(f"content kept in {swaps.kept} of {swaps.swapped} swaps; {out / 'style.html'} shows them")
