"""`keepsight visft`: task heads on a frozen backbone, then the backbone through the frozen heads."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepsight.cli.complete import backbone_names
from keepsight.cli.speech import stdout


def visft(
    data: Annotated[str, typer.Argument(help="Scenes: a folder of COCO, YOLO or Pascal VOC data.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any setting as key=value, for example joint.steps=500.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="As for tune.", autocompletion=backbone_names)] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input size in px.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Blocks of the map, such as 8,9,10.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Some of detection,segmentation,captioning; all by default.")
    ] = None,
    detector: Annotated[str | None, typer.Option(help="The head that detects: detr or dense.")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Steps of stage 2; 0 trains the heads alone.")] = None,
    retain: Annotated[str | None, typer.Option(help="In stage 2, as for tune.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything that is drawn.")] = None,
    recipe: Annotated[str | None, typer.Option(help="'paper': heads and stages as in the paper, for GPUs.")] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="Another run's folder, whose heads are taken where they are the same.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder. A killed run goes on here.")] = Path("runs/visft"),
) -> None:
    """Train task heads on a frozen backbone, tune the backbone through them, and take it away.

    [bold]keepsight visft scenes/[/bold]
    [bold]keepsight visft coco/ --tasks detection,captioning --backbone eva02_base_patch16_clip_224 joint.steps=1000[/bold]
    """
    from keepsight.recipes.visft import visft as run_visft
    from keepsight.recipes.visft_config import visft_config
    from keepsight.report.visft import print_visft, read_choice, read_visft_facts

    config = visft_config(
        data,
        backbone=backbone,
        size=size,
        blocks=blocks,
        tasks=tasks,
        detector=detector,
        steps=steps,
        retain=retain,
        seed=seed,
        recipe=recipe,
        assignments=settings or (),
    )
    found = run_visft(config, out, reuse=reuse, command=shlex.join(["keepsight", *sys.argv[1:]]))
    console = stdout()
    print_visft(read_visft_facts(found.path), found.results, read_choice(found.path), console)
    console.print(escape(f"Folder {found.path}; page {found.path / 'report.html'}"), soft_wrap=True)
