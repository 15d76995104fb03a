"""`keepsight plan`: what a training would take on given GPUs, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keepsight.cli.complete import backbone_names
from keepsight.cli.speech import OneSentenceGroup, stdout
from keepsight.core.errors import UserError

if TYPE_CHECKING:
    from keepsight.recipes.plan_visft import VisftPlan

GIB = 2**30

plan_app = typer.Typer(
    cls=OneSentenceGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What a training would take on given GPUs: parameters, memory, and the command to start it. Loads no weights.",
)


@plan_app.callback()
def _group() -> None:
    """With a callback the only command keeps its name."""


@plan_app.command()
def visft(
    backbone: Annotated[str, typer.Option(help="As for visft.", autocompletion=backbone_names)],
    gpus: Annotated[str, typer.Option(help="How many and how large, such as 8x32GB.")],
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA on q and v of every block.")] = 64,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images a step on all GPUs together; 4 on each by default.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input size in px; the backbone's own by default.")] = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated.")] = "detection,segmentation,captioning",
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "bf16",
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Gradient checkpointing; both are tried by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, in bytes.")] = False,
) -> None:
    """What stage 2 of ViSFT (LoRA through frozen task heads) takes on every GPU.

    [bold]keepsight plan visft --backbone eva02_enormous_patch14_clip_224 --gpus 8x32GB[/bold]
    """
    if precision not in ("no", "bf16", "fp16"):
        raise UserError(f"There is no precision {precision}: use no, bf16 or fp16.")
    from keepsight.recipes.plan_visft import plan_visft

    plan = plan_visft(
        backbone,
        gpus,
        rank=rank,
        batch=batch,
        size=size,
        tasks=tasks,
        precision=precision,  # type: ignore[arg-type]
        checkpointing=checkpointing,
    )
    if as_json:
        print(plan.model_dump_json(indent=2))
    else:
        _print(plan)
    if plan.chosen is None:
        raise typer.Exit(1)


def _print(plan: VisftPlan) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    heads = ", ".join(f"{task} {number / 1e6:.1f} M" for task, number in plan.head_parameters.items())
    console.print(
        escape(
            f"{plan.backbone} at {plan.size} px: {plan.parameters / 1e9:.2f} B parameters in {plan.depth} blocks\n"
            f"LoRA: {plan.trainable / 1e6:.1f} M trained ({plan.trainable / (plan.parameters + plan.trainable):.2%})\n"
            f"Heads, frozen: {heads}\n"
            f"{plan.gpus} GPUs of {plan.memory / GIB:g} GiB, {plan.batch} images a step, precision {plan.precision}"
        ),
        soft_wrap=True,
    )
    table = Table("GiB a GPU", *("DDP" if way.sharding == "none" else "FSDP2" for way in plan.ways))
    table.add_row("checkpointing", *("yes" if way.checkpointing else "no" for way in plan.ways))
    rows = ("weights", "gathered", "gradients", "optimizer", "activations", "heads", "total")
    for row in rows:
        table.add_row(row, *(f"{getattr(way, row) / GIB:.2f}" for way in plan.ways))
    table.add_row("fits", *("yes" if way.fits else "no" for way in plan.ways))
    console.print(table)
    console.print(
        f"2 GiB of each GPU are set aside for what is not modelled. Loading holds a whole copy in each process: at least "
        f"{plan.host / GIB:.0f} GiB of the machine's own memory.",
        soft_wrap=True,
    )
    if plan.launch is None:
        console.print("It does not fit: choose a smaller --batch or --size, more or larger GPUs.", soft_wrap=True)
    else:
        console.print(escape(f"Start it with\n  {plan.launch}"), soft_wrap=True)
