"""What probes found: tables in the terminal, table.txt and one page, from the `Result` records of a run's folder. Knows no probe.

The page has no scripts and no outside files. All text is escaped: titles and truths are a user's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from keepsight.core import Config, Result, UserError
from keepsight.core.files import write_text
from keepsight.core.result import read_results
from keepsight.report.attention_pictures import attention_pictures
from keepsight.report.forgetting import Drawing, Line, Panel, interval_svg, write_page

FACTS, RESULTS = "probe.json", "results.jsonl"
CHANGE = "_change"
LARGEST = 176
"""Longer side of an example's picture on the page, px."""

GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem"


class ProbeFacts(Config):
    """probe.json: what the folder holds.

    Attributes:
        version: keepsight's.
        command: What started it; empty if it was started in Python.
        config: The run's config.
        model: What the network is called.
        other: What is compared with it is called; None without a comparison.
        against: The same in records ("untouched").
        weights: Hashes of both, at their own input size.
        notes: What was left out, and why.
    """

    version: str
    command: str
    config: dict[str, Any]
    model: str
    other: str | None
    against: str | None
    weights: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A test item for the page.

    Attributes:
        probe: Whose.
        image: Its picture.
        truth: What is right.
        said: What was answered.
        right: Whether it is.
        said_before, right_before: The same of the other network; None without one.
    """

    probe: str
    image: Image.Image
    truth: str
    said: str
    right: bool
    said_before: str | None = None
    right_before: bool | None = None


@dataclass(frozen=True, slots=True)
class Looks:
    """Where networks look in some images.

    Attributes:
        probe: Whose.
        name: What is shown, such as "block 12".
        images: The pictures.
        maps: Of each network the map [h, w] of each image.
        titles: Of the networks: "before" and "after", or "attention" of one alone.
    """

    probe: str
    name: str
    images: tuple[Image.Image, ...]
    maps: tuple[tuple[NDArray[np.float32], ...], ...]
    titles: tuple[str, ...]


def read_probe_facts(path: Path) -> ProbeFacts:
    """The facts of the run in a folder; UserError if there is none, or they are damaged."""
    if not (path / FACTS).is_file():
        raise UserError(f"There is no run of probes in {path}: start one with keepsight probe --out {path}.")
    try:
        return ProbeFacts.model_validate_json((path / FACTS).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path / FACTS} is damaged or of another version: choose another folder.") from error


def write_probe_reports(path: Path, pictures: Sequence[Picture], looks: Sequence[Looks] = ()) -> None:
    """Write table.txt and probes.html from the records in the folder.

    Args:
        path: The run's folder.
        pictures: Test items to show.
        looks: Where the networks look.
    """
    facts, results = read_probe_facts(path), read_results(path / RESULTS)
    text = io.StringIO()
    print_probes(facts, results, Console(file=text, width=160, highlight=False))
    write_text(path / "table.txt", text.getvalue())
    parts: list[Panel | Drawing] = [*_panels(facts, results), *_drawings(results)]
    notes = [("Configuration", yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True))]
    if facts.command:
        notes.insert(0, ("Command", facts.command))
    write_page(path / "probes.html", f"Probes of {facts.model}", [*_lead(facts), *facts.notes], parts, notes)
    page = (path / "probes.html").read_text(encoding="utf-8")
    first = notes[0][0]
    shown = "".join(_examples(name, pictures) for name in dict.fromkeys(p.probe for p in pictures))
    shown += "".join(_looks(each) for each in looks)
    write_text(path / "probes.html", page.replace(f"<h2>{first}</h2>", f"{shown}<h2>{first}</h2>", 1))


def print_probes(facts: ProbeFacts, results: Sequence[Result], out: Console) -> None:
    """Print the tables."""
    for line in (*_lead(facts), *facts.notes):
        out.print(escape_markup(line), soft_wrap=True)
    for panel in _panels(facts, results):
        table = Table(title=escape_markup(panel.heading), title_justify="left", title_style="bold", header_style="bold")
        for place, heading in enumerate(panel.header):
            table.add_column(escape_markup(heading), justify="left" if place < 3 else "right", overflow="fold")
        for row in panel.rows:
            table.add_row(*(escape_markup(cell) for cell in row))
        out.print(table)


def _lead(facts: ProbeFacts) -> list[str]:
    said = [
        "Tasks that no tuning saw, asked of frozen features; heads are trained alike for every network. 95 % intervals."
    ]
    if facts.other is not None:
        said.append(
            f"Before: {facts.other}. After: {facts.model}. The difference is of the same test items and seeds, in points."
        )
    if facts.config.get("shuffled"):
        said.append("Control: heads learnt from shuffled targets, so that every figure should be at chance.")
    return said


def _panels(facts: ProbeFacts, results: Sequence[Result]) -> list[Panel]:
    """Headlines, then what stands behind them."""
    made = []
    for detail, heading in ((False, "Probes"), (True, "Behind the figures: types, baselines")):
        chosen = [r for r in results if r.detail == detail]
        if chosen:
            made.append(_panel(heading, facts, chosen))
    return made


def _panel(heading: str, facts: ProbeFacts, results: Sequence[Result]) -> Panel:
    of = {(r.method, r.dataset, r.metric, r.backbone): r for r in results}
    keys = dict.fromkeys((r.method, r.dataset, r.metric.removesuffix(CHANGE)) for r in results)
    rows = []
    for probe, dataset, metric in keys:
        after = of.get((probe, dataset, metric, facts.model))
        before = None if facts.other is None else of.get((probe, dataset, metric, facts.other))
        change = of.get((probe, dataset, f"{metric}{CHANGE}", facts.model))
        there = after or before
        if there is None:
            continue
        arrow = " (lower is better)" if there.better == "lower" else ""
        row = [probe, f"{metric.replace('_', ' ')}{arrow}", dataset, f"{there.n:,}", str(there.size or "")]
        row += ["-" if there.chance is None else f"{100 * there.chance:.1f}"]
        if facts.other is not None:
            row += [_cell(before), _cell(after), _cell(change, signed=True)]
        else:
            row += [_cell(after)]
        rows.append(row)
    columns = ["before", "after", "difference"] if facts.other is not None else ["found"]
    return Panel(
        heading,
        "In per cent; n test items, the backbone's input in px.",
        ["probe", "figure", "data", "n", "px", "chance", *columns],
        rows,
    )


def _cell(record: Result | None, signed: bool = False) -> str:
    if record is None or not np.isfinite(record.value):
        return "-"
    sign = "+" if signed else ""
    # Adding zero turns a rounded -0.0 into 0.0.
    value, low, high = (round(100 * v, 1) + 0.0 for v in (record.value, record.ci_low, record.ci_high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _drawings(results: Sequence[Result]) -> list[Drawing]:
    lines = []
    for r in results:
        if r.metric.endswith(CHANGE) and not r.detail and np.isfinite((r.value, r.ci_low, r.ci_high)).all():
            value, low, high = (
                (r.value, r.ci_low, r.ci_high) if r.better != "lower" else (-r.value, -r.ci_high, -r.ci_low)
            )
            name = f"{r.method}: {r.metric.removesuffix(CHANGE).replace('_', ' ')}, {r.dataset}"
            lines.append(Line(name, 100 * value, 100 * low, 100 * high))
    if not lines:
        return []
    caption = "Points better (right) or worse (left), with 95 % intervals; orange where it is surely worse."
    return [Drawing("What changed", caption, interval_svg(lines, "Change of each probe"))]


def _examples(probe: str, pictures: Sequence[Picture]) -> str:
    figures = "".join(_example(picture) for picture in pictures if picture.probe == probe)
    return f"<h2>{escape(probe)}: test items</h2><div style='{GRID}'>{figures}</div>"


def _example(picture: Picture) -> str:
    lines = [f"truth: {picture.truth}"]
    if picture.said_before is not None:
        lines.append(f"before: {picture.said_before} ({_verdict(bool(picture.right_before))})")
    lines.append(f"{'answer' if picture.said_before is None else 'after'}: {picture.said} ({_verdict(picture.right)})")
    said = "<br>".join(escape(line) for line in lines)
    return (
        f"<figure><img alt='{escape(lines[0], quote=True)}' style='max-width:100%' src='{_inline(picture.image)}'>"
        f"<figcaption>{said}</figcaption></figure>"
    )


def _looks(looks: Looks) -> str:
    picture = attention_pictures(looks.images, looks.maps, looks.titles)
    said = (
        f"{looks.name}: where the class token looks, {', '.join(looks.titles)}; from dark blue (nowhere) to yellow (most), on one "
        "scale for all maps of an image."
    )
    return (
        f"<h2>{escape(looks.probe)}: {escape(looks.name)}</h2><figure><img alt='{escape(said, quote=True)}' "
        f"style='max-width:100%' src='{_inline(picture, 0)}'><figcaption>{escape(said)}</figcaption></figure>"
    )


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"


def _inline(image: Image.Image, longest: int = LARGEST) -> str:
    """As a data URL; of at most so many px a side, if any."""
    small = image.convert("RGB")
    if longest:
        small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
