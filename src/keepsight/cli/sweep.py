"""`keepsight sweep`: many data sets, backbones and numbers of labels in one command, and its reports."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from keepsight.cli.complete import backbone_names, data_names, method_names, readouts
from keepsight.cli.speech import OneSentenceGroup, stdout

sweep_app = typer.Typer(
    cls=OneSentenceGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Experiments over many runs: error against the number of labels.",
)


@sweep_app.command("label-counts")
def label_counts(
    data: Annotated[
        str, typer.Argument(help="Comma-separated data sets: names, folders, tables.", autocompletion=data_names)
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting of 'keepsight tune' as key=value, for example probe.folds=3."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Comma-separated backbones.", autocompletion=backbone_names)
    ] = None,
    size: Annotated[str | None, typer.Option(help="Comma-separated input sizes in px.")] = None,
    readout: Annotated[
        str | None, typer.Option(help="BLOCKS:POOLS, or 'auto' (the default).", autocompletion=readouts)
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods; all of the chosen families by default.", autocompletion=method_names
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Comma-separated numbers of labels; 10,40,100,250,1000 by default.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; 5 by default.")] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Methods on features of the frozen backbone (the default).")
    ] = False,
    trainable: Annotated[bool, typer.Option("--trainable", help="Methods that train a network on images.")] = False,
    test: Annotated[float | None, typer.Option(help="Share (0.2) or number (1500) of images to test on.")] = None,
    pool: Annotated[
        int | None, typer.Option(help="At most so many images to learn from, drawn by the split seed.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes for cells on a frozen backbone; one a core by default.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with this method; by default content-style if it is there, else the best."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The sweep's folder. A killed sweep goes on here.")] = Path(
        "runs/label-counts"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the number of cells and the cost, and stop.")
    ] = False,
) -> None:
    """Measure methods at several numbers of labels: tables, figures and a page with intervals over seeds and images.

    [bold]keepsight sweep label-counts mnist-5k,digits --size 56 --labels 10,40,100 --test 1500[/bold]
    """
    from keepsight.recipes.sweep_config import sweep_config

    config = sweep_config(
        data,
        backbones=backbone,
        sizes=size,
        methods=methods,
        labels=labels,
        frozen=frozen,
        trainable=trainable,
        pool=pool,
        settings=_settings(readout, seeds, test),
        assignments=settings or [],
    )
    if dry_run:
        from keepsight.recipes.sweep_plan import sweep_plan

        for name, value in sweep_plan(config).model_dump().items():
            shown = ", ".join(value) or "none" if isinstance(value, tuple) else f"{value:,.0f}"
            print(f"{name}: {shown}")
        return
    from keepsight.recipes.sweep import sweep_label_counts

    command = shlex.join(["keepsight", *sys.argv[1:]])
    found = sweep_label_counts(config, out, jobs=jobs, against=against, command=command)
    _show(found.path, against)
    if found.failures:
        raise typer.Exit(1)


@sweep_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder.")],
    against: Annotated[str | None, typer.Option(help="Compare with this method.")] = None,
) -> None:
    """Make tables, figures and page of a finished sweep again from its records."""
    from keepsight.core import UserError
    from keepsight.report.sweep import write_reports
    from keepsight.report.sweep_records import read_facts

    known = read_facts(folder).families
    if against is not None and against not in known:
        raise UserError(f"--against {against} is not among the methods of the sweep: {', '.join(known)}.")
    write_reports(folder, against)
    _show(folder, against)


def _settings(readout: str | None, seeds: int | None, test: float | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if test is not None:
        settings["split"] = {"test": int(test) if test >= 1 and test == int(test) else test}
    return settings | {k: v for k, v in (("readout", readout), ("seeds", seeds)) if v is not None}


def _show(folder: Path, against: str | None) -> None:
    from keepsight.report.sweep import print_sweep, read_tables
    from keepsight.report.sweep_records import read_facts

    out = stdout()
    print_sweep(read_tables(folder), against or read_facts(folder).against, out)
    out.print(escape(f"Sweep folder {folder}; page {folder / 'report.html'}"), soft_wrap=True)
