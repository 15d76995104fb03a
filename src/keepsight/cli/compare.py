"""`keepsight compare`: methods side by side on your data, within a time; and what keeps a tuned backbone from forgetting."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from keepsight.cli.complete import backbone_names, data_names, method_names, probe_names, readouts
from keepsight.cli.speech import OneSentenceGroup, stdout

if TYPE_CHECKING:
    from keepsight.recipes.compare_config import LadderConfig
    from keepsight.recipes.run import Run

DEFAULT = "DATA ..."
"""The command that a first word which names no other one belongs to; nobody types it by chance."""


class DataGroup(OneSentenceGroup):
    """A group whose first word is data, unless it names one of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click: the arguments, with the default command in front of what names none."""
        if args and args[0] not in ("--help", *self.commands):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click: the command that the first argument names; the default one has no name of its own."""
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == DEFAULT else name), command, rest


compare_app = typer.Typer(
    cls=DataGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Methods side by side on your data, from cheap to dear, within a time: dear ones are trained while they can win.\n\n"
    "[bold]keepsight compare leaves/ --methods probe,lora,full --retain none,procrustes,wise-ft --seeds 3 --budget 30m[/bold]\n\n"
    "[bold]keepsight compare demo[/bold]                 on embedded real digits\n\n"
    "[bold]keepsight compare leaves/ --help[/bold]       all options\n\n"
    "[bold]keepsight compare retention[/bold] is an experiment of its own: everything that keeps a tuned backbone from "
    "forgetting, trained to the end on one task.",
)


@compare_app.callback()
def _group() -> None:
    """With a callback the commands keep their names."""


@compare_app.command(DEFAULT)
def compare(
    data: Annotated[
        str,
        typer.Argument(
            help="As for 'keepsight tune': a folder, a CSV, a data set's name, or 'demo'.", autocompletion=data_names
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting of 'keepsight tune' as key=value, for example finetune_full.epochs=10."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, such as knn, probe, label-propagation, content-style, lora, full; those of tune by default.",
            autocompletion=method_names,
        ),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: each method that tunes the backbone is compared with each of them, such as none, procrustes:2, "
            "distill, wise-ft (its whole curve); none by default."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; 3 by default.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time, such as 30m, 90s or 2h: what would not fit is not begun. No limit by default."),
    ] = None,
    labels: Annotated[int | None, typer.Option(min=1, help="Keep this many labels.")] = None,
    test: Annotated[
        float | None, typer.Option(help="Share (0.2) or number (1500) of labelled images to hold out for the test.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="As for tune.", autocompletion=backbone_names)] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input size in px.")] = None,
    readout: Annotated[
        str | None, typer.Option(help="BLOCKS:POOLS; 'auto' chooses on the labelled images.", autocompletion=readouts)
    ] = None,
    max_forgetting: Annotated[
        str | None,
        typer.Option(
            help="Recommend nothing that loses more points of mean probe accuracy on other data, such as 1pp; measured on one half "
            "of the suite, the other half is reported."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="Data to measure forgetting on, as for 'keepsight forgetting'; may be given several times.",
            autocompletion=data_names,
        ),
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(
            help="What the tuned candidates of the last rung are asked at the end, as by 'keepsight probe', such as ocr,vqa; not "
            "counted in --budget. None by default.",
            autocompletion=probe_names,
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count and leave out images that cannot be read.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder; runs/compare-NAME by default. A killed comparison goes on here.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved settings, the candidates and the cost, and stop.")
    ] = False,
) -> None:
    """Compare methods on your images, from cheap to dear, and recommend one without looking at the test labels.

    [bold]keepsight compare demo[/bold]
    [bold]keepsight compare leaves/ --methods probe,lora,full --retain none,procrustes,wise-ft --seeds 3 --budget 30m[/bold]
    """
    from keepsight.cli.tune import _flags, _points
    from keepsight.recipes.compare import compare as run_compare
    from keepsight.recipes.compare_config import ladder_config

    config = ladder_config(
        data,
        methods=methods,
        retain=retain,
        seeds=seeds,
        budget=budget,
        limit=None if max_forgetting is None else _points(max_forgetting),
        suite=tuple(suite or ()),
        settings=_flags(backbone, size, readout, None, labels, None, test, skip_bad, None, None, None, probes),
        assignments=settings or [],
    )
    if dry_run:
        _print_plan(config)
        return
    _show(run_compare(config, out, command=shlex.join(["keepsight", *sys.argv[1:]])))


def _print_plan(config: LadderConfig) -> None:
    """What a comparison would begin with, as YAML with comments."""
    from keepsight.recipes.config import as_yaml
    from keepsight.recipes.plan import plan

    print(as_yaml(config.base), end="")
    for candidate in config.candidates:
        print(f"# candidate: {candidate.name}")
    for note in config.notes:
        print(f"# {note}")
    for name, value in plan(config.base).model_dump().items():
        print(f"# {name}: {value:,.0f}" if isinstance(value, float) else f"# {name}: {value}")
    print(
        "# The seconds are those of every method once and to the end, without short rungs and without what holds it back."
    )


def _show(run: Run) -> None:
    """The page's first sentence, the tables, and where everything is."""
    from keepsight.report.ladder_page import print_ladder
    from keepsight.report.table import print_table

    out = stdout()
    out.print(escape(run.answer), soft_wrap=True)
    print_ladder(run.path, out)
    print_table(run.results, run.recommended, out)
    out.print(escape(run.why), soft_wrap=True)
    out.print(
        escape(f"Folder {run.path}; report {run.path / 'report.html'}; model {run.path / 'model'}"), soft_wrap=True
    )


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
    console.print(escape(f"Folder {found.path}; page {found.path / 'report.html'}"), soft_wrap=True)
    if found.failures:
        raise typer.Exit(1)
