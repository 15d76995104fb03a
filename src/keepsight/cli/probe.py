"""`keepsight probe`: tasks that no tuning saw, asked of a frozen backbone, before and after."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepsight.cli.complete import backbone_names, probe_names
from keepsight.cli.speech import stdout


def probe(
    backbone_or_model: Annotated[
        str,
        typer.Argument(
            help="A backbone as for tune, or the folder of a tuned model, of a run of tune or of one of visft.",
            autocompletion=backbone_names,
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any setting as key=value, for example ocr.size=168.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="What to compare with, named alike; 'random' for the same network with random weights; 'none'. By default a tuned "
            "model is compared with the backbone that it came from.",
            autocompletion=backbone_names,
        ),
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(
            help="Some of ocr,goi,zero-shot,few-shot,retrieval,vqa,knn,linear,attention; by default all whose data are there.",
            autocompletion=probe_names,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything that is drawn.")] = None,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="As a control: heads learn from shuffled targets, and must be at chance.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder. A killed run goes on here.")] = Path("runs/probe"),
) -> None:
    """Ask a backbone's features for what its tuning never saw: reading, counting, naming, finding; before, after, difference.

    [bold]keepsight probe vit_s14_imgfocus --against random[/bold]
    [bold]keepsight probe runs/visft --probes ocr,vqa ocr.size=168[/bold]
    """
    from keepsight.recipes.probe import probe as run_probes
    from keepsight.recipes.probe_settings import probing_config
    from keepsight.report.probes import print_probes, read_probe_facts

    config = probing_config(
        backbone_or_model, against=against, probes=probes, seed=seed, shuffled=shuffled, assignments=settings or ()
    )
    found = run_probes(config, out, command=shlex.join(["keepsight", *sys.argv[1:]]))
    console = stdout()
    print_probes(read_probe_facts(found.path), found.results, console)
    console.print(escape(f"Folder {found.path}; page {found.path / 'report.html'}"), soft_wrap=True)
