"""`keepsight demo-data`: data to try everything on, on a machine without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from keepsight.cli.speech import OneSentenceGroup, stdout

demo_data_app = typer.Typer(
    cls=OneSentenceGroup, no_args_is_help=True, rich_markup_mode="rich", help="Write data to try things on."
)


@demo_data_app.callback()
def _group() -> None:
    """With a callback the only command keeps its name."""


@demo_data_app.command()
def scenes(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; must not exist, or be empty.")],
    images: Annotated[int, typer.Option(min=1, help="Training images.")] = 1200,
    val: Annotated[int | None, typer.Option(min=0, help="Validation images; a sixth of --images by default.")] = None,
    test: Annotated[
        int | None,
        typer.Option(min=0, help="Images of test-seen and of test-unseen; an eighth of --images by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side of the images, px.")] = 168,
    source: Annotated[
        str, typer.Option(help="'stamps' of Tux Paint, MNIST's 'digits', or 'auto': stamps where they are installed.")
    ] = "auto",
    captions: Annotated[
        str, typer.Option(help="'all' of an image, or its 'template' of category and arrangement alone.")
    ] = "all",
) -> None:
    """Write scenes in COCO's format: real stamps on real photographs, with boxes, masks and captions.

    [bold]keepsight demo-data scenes scenes/ --images 1200 --seed 0[/bold]
    """
    from keepsight.core.errors import UserError
    from keepsight.data.scenes import ScenesConfig, write_scenes

    match source, captions:
        case "auto" | "stamps" | "digits", "all" | "template":
            config = ScenesConfig(
                images=images, val=val, test=test, seed=seed, size=size, source=source, captions=captions
            )
        case "auto" | "stamps" | "digits", _:
            raise UserError(f"--captions {captions!r} is not known: choose 'all' or 'template'.")
        case _:
            raise UserError(f"--source {source!r} is not known: choose 'stamps', 'digits' or 'auto'.")
    dataset = write_scenes(folder, config)
    parts = ", ".join(f"{part} {number:,}" for part, number in config.counts().items())
    objects = sum(len(each.classes) for each in dataset.objects)
    stdout().print(
        escape(
            f"{folder}: {len(dataset.images):,} images ({parts}), {objects:,} objects of {len(dataset.classes)} categories"
        ),
        soft_wrap=True,
    )
