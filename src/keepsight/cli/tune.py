"""`keepsight tune`: settings in, a run and its table out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from keepsight.cli.complete import backbone_names, data_names, method_names, probe_names, readouts
from keepsight.cli.speech import stdout
from keepsight.core.errors import UserError

if TYPE_CHECKING:
    from keepsight.recipes.run import Run


def _flags(
    backbone: str | None,
    size: int | None,
    readout: str | None,
    methods: str | None,
    labels: int | None,
    seeds: int | None,
    test: float | None,
    skip_bad: bool,
    trackers: str | None,
    retain: str | None,
    max_forgetting: str | None,
    probes: str | None,
) -> dict[str, Any]:
    from keepsight.recipes.probe_names import parse_probes

    settings: dict[str, Any] = {}
    if backbone is not None or size is not None:
        settings["backbone"] = {k: v for k, v in (("name", backbone), ("size", size)) if v is not None}
    if labels is not None or test is not None:
        whole = test is not None and test >= 1 and test == int(test)
        held_out = int(test) if test is not None and whole else test
        settings["split"] = {k: v for k, v in (("labels", labels), ("test", held_out)) if v is not None}
    for key, value in (("readout", readout), ("seeds", seeds), ("skip_bad", skip_bad or None), ("retain", retain)):
        if value is not None:
            settings[key] = value
    for key, names in (("methods", methods), ("trackers", trackers)):
        if names is not None:
            settings[key] = [name.strip() for name in names.split(",") if name.strip()]
    if probes is not None:
        settings["probes"] = parse_probes(probes)
    if max_forgetting is not None:
        settings["forgetting"] = {"limit": _points(max_forgetting)}
    return settings


def _points(text: str) -> float:
    """Points of accuracy from '1pp' or '1'; UserError for anything else."""
    try:
        points = float(text.strip().removesuffix("pp"))
    except ValueError:
        points = -1.0
    if not 0 <= points <= 100:
        raise UserError(f"--max-forgetting takes points of accuracy, such as 1pp: {text!r} is none.")
    return points


def tune(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder (one subfolder a class; [bold]unlabelled/[/bold] and loose images have no label), a CSV "
            "(columns path, label, optional split), a data set's name (mnist-5k, digits, fashion-mnist, mnist, ...), or 'demo'.",
            autocompletion=data_names,
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any setting as key=value, for example finetune_lora.epochs=30.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Packaged or timm name, open_clip:ARCH/TAG, hf:ORG/NAME, or a weights file (see 'keepsight backbones').",
            autocompletion=backbone_names,
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input size in px; the backbone's own by default.")] = None,
    readout: Annotated[
        str | None,
        typer.Option(
            help="BLOCKS:POOLS such as 8:grid2 or last:cls; 'auto' chooses on the labelled images.",
            autocompletion=readouts,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, such as knn, probe, label-propagation, finetune-bitfit, finetune-lora, finetune-full.",
            autocompletion=method_names,
        ),
    ] = None,
    labels: Annotated[
        int | None, typer.Option(help="Keep this many labels; the other labelled images become unlabelled.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    test: Annotated[
        float | None, typer.Option(help="Share (0.2) or number (1500) of labelled images to hold out for the test.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count and leave out images that cannot be read.")
    ] = False,
    trackers: Annotated[
        str | None, typer.Option(help="Where training curves go, comma-separated: tensorboard, wandb, mlflow.")
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            help="Keep what the backbone knew: penalties and weight rules such as procrustes:2, distill, l2-sp, wise-ft:0.5, "
            "comma-separated (with a weight behind a colon)."
        ),
    ] = None,
    max_forgetting: Annotated[
        str | None,
        typer.Option(
            help="At most so many points of mean probe accuracy on other data may be lost, such as 1pp: tuned weights are moved "
            "back towards their start until that holds on one half of the reference suite; the other half is reported."
        ),
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(
            help="What tuned backbones are asked at the end, before and after, as by 'keepsight probe': such as ocr,vqa. It takes "
            "minutes a method; none by default.",
            autocompletion=probe_names,
        ),
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

    flags = _flags(
        backbone, size, readout, methods, labels, seeds, test, skip_bad, trackers, retain, max_forgetting, probes
    )
    chosen = resolve(data, config, flags, settings or [])
    if dry_run:
        from keepsight.recipes.plan import plan

        print(as_yaml(chosen), end="")
        for name, value in plan(chosen).model_dump().items():
            print(f"# {name}: {value:,.0f}" if isinstance(value, float) else f"# {name}: {value}")
        return
    from keepsight.core import processes
    from keepsight.recipes.run import tune as run_tune

    run = run_tune(chosen, out=out, overwrite=overwrite, command=shlex.join(["keepsight", *sys.argv[1:]]))
    if processes.is_main():
        show(run)


def show(run: Run) -> None:
    """Print a run's table, recommendation and where everything is."""
    from keepsight.report.table import print_table

    out = stdout()
    print_table(run.results, run.recommended, out)
    out.print(escape(run.why), soft_wrap=True)
    if run.answer:
        out.print(escape(run.answer), soft_wrap=True)
    out.print(
        escape(f"Run folder {run.path}; report {run.path / 'report.html'}; model {run.path / 'model'}"), soft_wrap=True
    )
