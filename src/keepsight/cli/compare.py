"""`keepsight compare`: ways to do one thing side by side, in one command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepsight.cli.complete import backbone_names, data_names, readouts
from keepsight.cli.speech import OneSentenceGroup, stdout

compare_app = typer.Typer(
    cls=OneSentenceGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Ways to do one thing side by side: what keeps a tuned backbone from forgetting.",
)


@compare_app.callback()
def _group() -> None:
    """With a callback the only command keeps its name."""


@compare_app.command()
def retention(
    data: Annotated[
        str | None,
        typer.Argument(help="What to tune on; fashion-mnist by default.", autocompletion=data_names),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting of 'keepsight tune' as key=value, for example finetune_full.epochs=3."),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, each compared by itself: penalties and rules as in 'keepsight tune --retain', 'wise-ft' for its "
            "whole curve, 'unlabelled-control'; all of them by default. Plain tuning is always there."
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated; finetune-full,finetune-lora by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    labels: Annotated[int, typer.Option(min=1, help="Labelled images.")] = 256,
    test: Annotated[int, typer.Option(min=1, help="Images of the task to test on.")] = 1000,
    backbone: Annotated[str | None, typer.Option(help="As for tune.", autocompletion=backbone_names)] = None,
    size: Annotated[int, typer.Option(min=1, help="Input size in px.")] = 56,
    readout: Annotated[
        str | None,
        typer.Option(
            help="BLOCKS:POOLS; 'auto' chooses on the labelled images. By default 8:mean on the packaged backbone, else auto.",
            autocompletion=readouts,
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Data to measure forgetting on, as for 'keepsight forgetting'; may be given several times.",
            autocompletion=data_names,
        ),
    ] = None,
    per_set: Annotated[int, typer.Option(min=20, help="Images of each set of the suite, at most.")] = 500,
    out: Annotated[Path, typer.Option(help="The folder. A killed comparison goes on here.")] = Path("runs/retention"),
) -> None:
    """Compare everything that keeps a backbone from forgetting on one task: tables, the Pareto picture and a page.

    [bold]keepsight compare retention[/bold]
    [bold]keepsight compare retention leaves/ --retain procrustes:2,wise-ft --methods finetune-full --seeds 3[/bold]
    """
    from keepsight.recipes.retention_compare import compare_retention
    from keepsight.recipes.retention_config import retention_config
    from keepsight.report.retention import print_retention
    from keepsight.report.retention_records import read_compare_facts

    words = list(settings or [])
    if data is not None and "=" in data and not Path(data).exists():  # a setting, where no data is named
        words, data = [data, *words], None
    config = retention_config(
        data,
        retain=retain,
        methods=methods,
        seeds=seeds,
        labels=labels,
        test=test,
        backbone=backbone,
        size=size,
        readout=readout,
        suite=tuple(suite or ()),
        per_set=per_set,
        assignments=words,
    )
    found = compare_retention(config, out, command=shlex.join(["keepsight", *sys.argv[1:]]))
    console = stdout()
    print_retention(read_compare_facts(found.path), found.results, found.failures, console)
    console.print(escape(f"Folder {found.path}; page {found.path / 'retention.html'}"), soft_wrap=True)
    if found.failures:
        raise typer.Exit(1)
