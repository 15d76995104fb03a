"""The command line: reads arguments, calls recipes, prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from keepsight.core.errors import UserError
from keepsight.core.files import atomic_file
from keepsight.core.progress import console, log

if TYPE_CHECKING:
    from keepsight.recipes.run import Run

app = typer.Typer(
    name="keepsight",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adapt a pretrained vision model to your own images with few labels, and see in honest figures what it gained.\n\n"
    "Start with [bold]keepsight tune demo[/bold], then with a folder that holds one subfolder a class "
    "(images without a label go into [bold]unlabelled/[/bold]).",
)
_debug = False


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a user error.")] = False,
) -> None:
    global _debug
    _debug = debug


def _set_up_logging() -> None:
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_level=False, log_time_format="[%X]"
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> None:
    """Entry point: a user error is one sentence on stderr and exit code 2."""
    _set_up_logging()
    try:
        app()
    except UserError as error:
        if _debug:
            raise
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; the same command resumes the run")
        sys.exit(130)


def _flags(
    backbone: str | None,
    size: int | None,
    readout: str | None,
    methods: str | None,
    labels: int | None,
    seeds: int | None,
    test: float | None,
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if backbone is not None or size is not None:
        settings["backbone"] = {k: v for k, v in (("name", backbone), ("size", size)) if v is not None}
    if labels is not None or test is not None:
        whole = test is not None and test >= 1 and test == int(test)
        held_out = int(test) if test is not None and whole else test
        settings["split"] = {k: v for k, v in (("labels", labels), ("test", held_out)) if v is not None}
    for key, value in (("readout", readout), ("seeds", seeds)):
        if value is not None:
            settings[key] = value
    if methods is not None:
        settings["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    return settings


@app.command()
def tune(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder (one subfolder a class; [bold]unlabelled/[/bold] and loose images have no label), a CSV "
            "(columns path, label, optional split), an embedded set (mnist-5k, digits, fashion-mnist), or 'demo'."
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any setting as key=value, for example finetune_lora.epochs=30.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Packaged or timm name, or a weights file (see 'keepsight backbones').")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input size in px; the backbone's own by default.")] = None,
    readout: Annotated[
        str | None,
        typer.Option(help="BLOCKS:POOLS such as 8:grid2 or last:cls+mean; 'auto' chooses on the labelled images."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated: knn, probe, label-propagation, finetune-lora, finetune-full.")
    ] = None,
    labels: Annotated[
        int | None, typer.Option(help="Keep this many labels; the other labelled images become unlabelled.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    test: Annotated[
        float | None, typer.Option(help="Share (0.2) or number (1500) of labelled images to hold out for the test.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, such as a run's config.yaml.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/NAME by default. A killed run resumes here.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved settings and the cost, and stop.")
    ] = False,
) -> None:
    """Tune a model on your images, compare the methods, and recommend one without looking at the test labels.

    [bold]keepsight tune demo[/bold]                        the whole job on embedded real digits
    [bold]keepsight tune leaves/ --size 112[/bold]          your folder
    [bold]keepsight tune cells.csv --methods probe,finetune-lora seeds=5[/bold]
    """
    from keepsight.recipes.config import as_yaml, resolve

    chosen = resolve(data, config, _flags(backbone, size, readout, methods, labels, seeds, test), settings or [])
    if dry_run:
        from keepsight.recipes.plan import plan

        print(as_yaml(chosen), end="")
        for name, value in plan(chosen).model_dump().items():
            print(f"# {name}: {value:,.0f}" if isinstance(value, float) else f"# {name}: {value}")
        return
    from keepsight.recipes.run import tune as run_tune

    show(run_tune(chosen, out=out, overwrite=overwrite))


def show(run: Run) -> None:
    """Print a run's table, recommendation and where everything is."""
    from keepsight.report.table import print_table

    stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 132)
    print_table(run.results, run.recommended, stdout)
    stdout.print(escape(run.why), soft_wrap=True)
    stdout.print(
        escape(f"Run folder {run.path}; report {run.path / 'report.html'}; model {run.path / 'model'}"), soft_wrap=True
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A run folder or its model/ folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or one folder.")],
    out: Annotated[Path | None, typer.Option(help="CSV to write; the terminal by default.")] = None,
) -> None:
    """Predict classes: one CSV line an image, with the probability of every class."""
    from keepsight.export.model import TunedModel

    loaded = TunedModel.load(model)
    found = loaded.predict(images[0] if len(images) == 1 else images)
    header = ["path", "label", *(f"p({name})" for name in found.classes)]
    lines = [
        [name, label, *(f"{p:.6f}" for p in row)]
        for name, label, row in zip(found.names, found.labels, found.probabilities.tolist(), strict=True)
    ]
    if out is None:
        csv.writer(sys.stdout).writerows([header, *lines])
        return
    with atomic_file(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    log.info("%d predictions written to %s", len(lines), out)


@app.command()
def backbones(
    pattern: Annotated[str, typer.Argument(help="Part of a timm name, or a pattern such as 'vit_*dinov3*'.")] = "",
) -> None:
    """List the models that can be tuned: packaged ones (no model hub needed), and timm's that match a pattern."""
    from keepsight.backbones.load import list_backbones

    found = list_backbones(pattern)
    if not found:
        raise UserError(
            f"No backbone matches {pattern!r}: 'keepsight backbones dino' lists those with dino in their name."
        )
    table = Table()
    for heading in ("name", "from", "input px", "parameters", "licence of the weights", "what"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        parameters = f"{entry.parameters / 1e6:.1f} M" if entry.parameters else ""
        texts = (entry.name, entry.source, str(entry.size), parameters, entry.licence, entry.description)
        table.add_row(*(escape(text) for text in texts))
    Console(highlight=False, width=None if sys.stdout.isatty() else 132).print(table)
