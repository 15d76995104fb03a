"""Commands around a model: predict, evaluate, embed, export, and the list of backbones."""

from __future__ import annotations

from dataclasses import astuple
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from keepsight.cli.complete import backbone_names, data_names, readouts
from keepsight.cli.speech import DataSettings, stdout
from keepsight.core.errors import UserError
from keepsight.core.files import write_text
from keepsight.core.progress import log

ModelArgument = Annotated[Path, typer.Argument(help="A run folder or its model/ folder.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count and leave out images that cannot be read.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a forward pass.")]


class TableFormat(StrEnum):
    """How predictions are written."""

    csv = "csv"
    parquet = "parquet"
    jsonl = "jsonl"


class EmbedFormat(StrEnum):
    """How shards are written."""

    parquet = "parquet"
    npy = "npy"


class Target(StrEnum):
    """What a model is exported to."""

    timm = "timm"
    peft = "peft"
    onnx = "onnx"


class Split(StrEnum):
    """Which images are measured."""

    test = "test"
    val = "val"
    all = "all"


def predict(
    model: ModelArgument,
    images: Annotated[
        list[str], typer.Argument(help="Image files, or one folder, table or data set name.", autocompletion=data_names)
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; the terminal by default.")] = None,
    format: Annotated[
        TableFormat | None, typer.Option(help="By default what the name of --out ends in, else csv.")
    ] = None,
    skip_bad: SkipBad = False,
    batch_size: BatchSize = 64,
) -> None:
    """Predict classes: one line an image, with the probability of every class. A run of ViSFT draws boxes, masks and captions.

    [bold]keepsight predict runs/leaves new/1.jpg new/2.jpg[/bold]
    [bold]keepsight predict runs/leaves new/ --out new.parquet --skip-bad[/bold]
    [bold]keepsight predict runs/visft new/ --out answers/[/bold]
    """
    from keepsight.report.visft import FACTS

    if (Path(model) / FACTS).is_file():
        _predict_scenes(Path(model), images, out, format, skip_bad)
        return
    from keepsight.export.model import TunedModel
    from keepsight.export.predictions import write_predictions

    chosen = None if format is None else format.value
    loaded = TunedModel.load(model)
    counts = write_predictions(loaded, images, out, chosen, skip_bad=skip_bad, batch_size=batch_size)
    left_out = f"; {counts.skipped} unreadable images left out" if counts.skipped else ""
    log.info("%d predictions%s%s", counts.written, f" written to {out}" if out is not None else "", left_out)


def _predict_scenes(
    model: Path, images: list[str], out: Path | None, format: TableFormat | None, skip_bad: bool
) -> None:
    """Boxes, masks and captions into a folder."""
    from keepsight.export.predictions import images_to_predict
    from keepsight.recipes.visft_predict import load_scene_model, predict_scenes

    if format is not None:
        raise UserError("A run of ViSFT answers with COCO's JSON and pictures: leave out --format.")
    folder = out or Path("predictions")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"The output {folder} is there already: name a new folder with --out.")
    count = predict_scenes(load_scene_model(model), images_to_predict(images), folder, skip_bad=skip_bad)
    log.info("%d images answered: %s and %s", count, folder / "predictions.json", folder / "pictures")


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(help="Labelled images: anything that tune takes.", autocompletion=data_names)],
    settings: DataSettings = None,
    split: Annotated[
        Split | None,
        typer.Option(help="By default the test part of the data (or of the model's own run), else all images."),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="A second model, compared on the same images.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Recall, precision and F1 of every class.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the records as JSON lines.")] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Measure a model on labelled images: figures with 95 % intervals, classes matched by name.

    [bold]keepsight evaluate runs/leaves new-leaves/ --per-class[/bold]
    [bold]keepsight evaluate runs/leaves new-leaves/ --against runs/older --out figures.jsonl[/bold]
    """
    from keepsight.recipes.config import data_options
    from keepsight.recipes.evaluate import evaluate_model
    from keepsight.report.evaluation import print_evaluation

    part: Literal["test", "val", "all"] | None = None if split is None else split.value
    options = data_options(settings or [])
    found = evaluate_model(model, data, split=part, against=against, skip_bad=skip_bad, options=options)
    print_evaluation(found.records, [astuple(c) for c in found.classes] if per_class else (), stdout())
    if found.skipped:
        log.warning("%d unreadable images were left out of these figures", found.skipped)
    if out is not None:
        write_text(out, "".join(record.model_dump_json() + "\n" for record in found.records))


def embed(
    backbone: Annotated[
        str, typer.Argument(help="A backbone's name, a run folder or a model/ folder.", autocompletion=backbone_names)
    ],
    data: Annotated[str, typer.Argument(help="Images: anything that tune takes.", autocompletion=data_names)],
    out: Annotated[Path, typer.Option(help="A folder for shards, or one FILE.parquet or FILE.npy.")],
    readout: Annotated[
        str | None,
        typer.Option(help="BLOCKS:POOLS; a model's own by default, else last:cls.", autocompletion=readouts),
    ] = None,
    settings: DataSettings = None,
    size: Annotated[int | None, typer.Option(min=1, help="Input size in px; the backbone's own by default.")] = None,
    format: Annotated[EmbedFormat, typer.Option(help="Of the shards in a folder.")] = EmbedFormat.parquet,
    shard_size: Annotated[int, typer.Option(min=1, help="Images a shard; a kill loses at most one shard.")] = 10_000,
    skip_bad: SkipBad = False,
    batch_size: BatchSize = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other embeddings in --out.")] = False,
) -> None:
    """Write the features of images; a killed embed continues with the shards that are missing.

    [bold]keepsight embed vit_s14_imgfocus leaves/ --out leaves.parquet --readout 8:grid2[/bold]
    [bold]keepsight embed runs/leaves leaves.csv --out shards/ --format npy[/bold]
    """
    from keepsight.recipes.config import data_options
    from keepsight.recipes.embed import EmbedConfig
    from keepsight.recipes.embed import embed as run_embed

    config = EmbedConfig(
        readout=readout,
        size=size,
        format=format.value,
        shard_size=shard_size,
        batch_size=batch_size,
        skip_bad=skip_bad,
        data_options=data_options(settings or []),
    )
    done = run_embed(backbone, data, out, config, overwrite=overwrite)
    left_out = f"; {done.skipped} unreadable images left out" if done.skipped else ""
    print(f"{done.rows} embeddings of {done.width} numbers in {out}{left_out}")


def export(
    model: ModelArgument,
    to: Annotated[Target, typer.Option(help="timm: merged weights; peft: the LoRA adapter; onnx: a graph.")],
    out: Annotated[Path, typer.Option(help="Folder (timm, peft) or file (onnx) to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="onnx: images of the parity check; scikit-learn's digits by default.", autocompletion=data_names
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a tuned model for other libraries, checked against PyTorch.

    [bold]keepsight export runs/leaves --to timm --out leaves-timm/[/bold]
    [bold]keepsight export runs/leaves --to onnx --out leaves.onnx[/bold]
    """
    from keepsight.export.model import TunedModel

    if out.exists() and not overwrite:
        raise UserError(f"The output {out} exists already: choose another --out, or replace it with --overwrite.")
    loaded = TunedModel.load(model)
    if to is Target.onnx:
        from keepsight.export.onnx import export_onnx

        print(export_onnx(loaded, out, data))
    elif to is Target.timm:
        from keepsight.export.timm_layout import export_timm

        print(export_timm(loaded, out))
    else:
        from keepsight.export.adapter import export_adapter

        print(export_adapter(loaded, out))


def backbones(
    pattern: Annotated[str, typer.Argument(help="Part of a timm name, or a pattern such as 'vit_*dinov3*'.")] = "",
) -> None:
    """List the models that can be tuned: packaged ones (no model hub needed), and timm's that match a pattern.

    [bold]keepsight backbones dinov3[/bold]
    """
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
    stdout().print(table)
