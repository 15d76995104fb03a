"""The command that measures what a tuned model forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keepsight.cli.complete import data_names, readouts
from keepsight.cli.models import ModelArgument
from keepsight.cli.speech import stdout


def forgetting(
    model: ModelArgument,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Data to measure on: anything labelled that tune takes, and 'bundled' for the sets that come with keepsight (the "
            "default); may be given several times.",
            autocompletion=data_names,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and its records; in the model's own by default.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another model to compare with, in place of the untouched backbone.")
    ] = None,
    readout: Annotated[
        str | None, typer.Option(help="What k-NN and probe see; the model's own by default.", autocompletion=readouts)
    ] = None,
    per_set: Annotated[int, typer.Option(min=20, help="Images of each set, at most.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    sharpness: Annotated[
        bool,
        typer.Option(
            "--sharpness", help="Also how fast the loss rises around the tuned weights; costs several passes."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure again, and replace what is in --out.")
    ] = False,
) -> None:
    """Measure what a tuned model forgot: accuracy on other data before and after, with paired intervals.

    [bold]keepsight forgetting runs/leaves[/bold]
    [bold]keepsight forgetting runs/leaves --suite bundled --suite flowers/ --out leaves-forgot/[/bold]
    """
    from keepsight.recipes.forgetting import forgetting as measure
    from keepsight.recipes.forgetting_findings import records_of_findings
    from keepsight.recipes.forgetting_settings import ForgettingConfig
    from keepsight.report.forgetting import print_forgetting

    given: dict[str, Any] = {"per_set": per_set, "seed": seed, "sharpness": sharpness, "readout": readout}
    if suite:
        given["suite"] = tuple(suite)
    if readout is not None:
        from keepsight.core import Readout

        Readout.parse(readout)
    found = measure(model, out, against=against, config=ForgettingConfig(**given), overwrite=overwrite)
    if found.findings is not None:
        print_forgetting(records_of_findings(found.findings), stdout())
    print(found.sentence)
    if found.folder is not None:
        print(f"{found.folder / 'report.html'} shows it")
