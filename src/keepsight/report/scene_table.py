"""A report on scenes in a terminal: objects by class and part, then the findings. Reads `SceneReport` only."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from keepsight.data.scene_check import SceneReport

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def scene_table(report: SceneReport) -> RenderableType:
    """Everything a user should see at once."""
    parts = ", ".join(f"{part or 'images'} {number:,}" for part, number in report.parts.items())
    objects = sum(sum(counts.values()) for counts in report.classes.values())
    captions = sum(report.captions.values())
    heading = (
        f"{report.name}: {report.images:,} images ({parts}), {objects:,} objects of {len(report.classes):,} categories, "
        f"{report.masks:,} masks, {captions:,} captions"
    )
    blocks: list[RenderableType] = [Text(heading, style="bold")]
    if report.classes:
        table = Table(header_style="bold")
        table.add_column("category", overflow="fold")
        for part in report.parts:
            table.add_column(part or "images", justify="right")
        for name, counts in report.classes.items():
            shown = name if name.isprintable() else repr(name)
            table.add_row(escape(shown), *(f"{counts.get(part, 0):,}" for part in report.parts))
        blocks.append(table)
    for finding in report.findings:
        blocks.append(Text.assemble((f"{finding.severity}: ", _STYLES[finding.severity]), finding.text))
    if not report.findings:
        blocks.append(Text("Nothing was found wrong."))
    return Group(*blocks)
