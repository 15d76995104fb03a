"""`keepsight data check` and `keepsight cache`: a look at the data before it is tuned on, and at what is kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from keepsight.cli.complete import data_names
from keepsight.cli.speech import DataSettings, OneSentenceGroup, stdout

data_app = typer.Typer(cls=OneSentenceGroup, no_args_is_help=True, help="Look at data before tuning on it.")
cache_app = typer.Typer(
    cls=OneSentenceGroup, no_args_is_help=True, help="List and prune what is kept on disk: features and fetched files."
)


@data_app.command()
def check(
    data: Annotated[
        str, typer.Argument(help="Anything that tune takes: a folder, a table, a name...", autocompletion=data_names)
    ],
    settings: DataSettings = None,
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON, too.")] = None,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Look for near duplicates, too.")] = True,
    workers: Annotated[int | None, typer.Option(help="Images read at once; one a core by default.")] = None,
) -> None:
    """Read every image; report what is unreadable, oversized, duplicated across parts, or wrongly labelled.

    Of scenes (COCO, YOLO, Pascal VOC) also what is wrong with boxes, masks, captions, ids and file names.

    The exit code is 1 if there are errors that tune would stop at, else 0.

    [bold]keepsight data check leaves/ --json leaves-check.json[/bold]
    """
    from keepsight.core.files import write_text
    from keepsight.data.check import DataReport, check_data
    from keepsight.data.load import load_dataset
    from keepsight.data.named import NAMES
    from keepsight.data.scene_check import SceneReport, check_scenes
    from keepsight.data.scenes_load import scene_format
    from keepsight.recipes.config import data_options
    from keepsight.report.data_table import report_table
    from keepsight.report.scene_table import scene_table

    report: DataReport | SceneReport
    if data not in NAMES and scene_format(data) is not None:
        report = check_scenes(data, workers=workers)
        stdout().print(scene_table(report))
    else:
        report = check_data(load_dataset(data, data_options(settings or []), check=False), near=near, workers=workers)
        stdout().print(report_table(report))
    if json is not None:
        write_text(json, report.model_dump_json(indent=2) + "\n")
    if any(finding.severity == "error" for finding in report.findings):
        raise typer.Exit(1)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


@cache_app.command("list")
def list_() -> None:
    """List what the cache holds, with sizes.

    [bold]keepsight cache list[/bold]
    """
    from keepsight.core.files import cache_directory
    from keepsight.features.manage import list_cache

    entries = list_cache(cache_directory())
    table = Table(title=escape(f"{cache_directory()}: {_mib(sum(e.bytes for e in entries))} MiB"), title_style="")
    for heading in ("kind", "name", "input px", "images", "parts", "MiB", "last used"):
        right = heading in ("input px", "images", "MiB")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for e in entries:
        used = f"{e.last_used.astimezone():%Y-%m-%d %H:%M}{' (in use)' if e.in_use else ''}"
        images = f"{e.images:,}" if e.images else ""
        table.add_row(
            e.kind, escape(e.name), str(e.size or ""), images, escape(", ".join(e.parts)), _mib(e.bytes), used
        )
    stdout().print(table)


@cache_app.command()
def prune(
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Remove what was not used for this many days; fetched files stay.")
    ] = None,
    max_size: Annotated[
        float | None, typer.Option(min=0, help="Remove the least recently used features until this many GB are left.")
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Remove all, fetched files too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and stop.")] = False,
) -> None:
    """Remove old cached features, scenes and findings, or all; what another process uses stays.

    [bold]keepsight cache prune --older-than 30 --dry-run[/bold]
    """
    from keepsight.core.errors import UserError
    from keepsight.core.files import cache_directory
    from keepsight.features.manage import prune_cache

    if older_than is None and max_size is None and not everything:
        raise UserError("Nothing says what to remove: give --older-than DAYS, --max-size GB or --everything.")
    removed = prune_cache(
        cache_directory(),
        older_than_days=older_than,
        max_bytes=None if max_size is None else int(max_size * 1e9),
        everything=everything,
        dry_run=dry_run,
    )
    verb = "would be removed" if dry_run else "removed"
    print(f"{len(removed)} entries, {_mib(sum(e.bytes for e in removed))} MiB {verb}")
