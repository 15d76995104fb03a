"""What a model forgot: a table in the terminal from `Result` records, and the pieces of a page. Knows no features and no model.

The page has no scripts and no outside files. All text is escaped: names of data and classes are a user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from keepsight.core import Result
from keepsight.core.files import write_text
from keepsight.report.html import STYLE

TITLES = {
    "probe_accuracy": "linear probe",
    "knn_accuracy": "k-NN",
    "zero_shot_accuracy": "zero-shot",
    "probe_ece": "calibration error",
}
"""Figures of accuracy in the order of what they prove; what the page and the table call them."""

# Okabe and Ito's palette: all kinds of colour vision tell its colours apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")

_LEGEND = 16
"""Classes, at most, that a picture names."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A table: texts, and what is said above it."""

    heading: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """An SVG file, its heading and its caption."""

    heading: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Line:
    """One interval of a drawing, in points of per cent."""

    title: str
    value: float
    low: float
    high: float


def change_text(before: float, value: float, low: float, high: float) -> str:
    """Before -> after and the change with its interval, in per cent and points.

    Example:
        >>> change_text(0.9, -0.1, -0.12, -0.08)
        '90.0 -> 80.0 (-10.0 [-12.0, -8.0])'
    """
    # Adding zero turns a rounded -0.0 into 0.0.
    change, least, most = (round(100 * v, 1) + 0.0 for v in (value, low, high))
    return f"{100 * before:.1f} -> {100 * (before + value):.1f} ({change:+.1f} [{least:+.1f}, {most:+.1f}])"


def print_forgetting(records: Sequence[Result], out: Console) -> None:
    """Print one row a data set, the mean last: images, and before -> after with the change of each accuracy."""
    changes = [r for r in records if r.metric.endswith("_change")]
    first = changes[0]
    what = f"{first.method} against {first.against}, {first.backbone}, readout {first.readout}"
    title = f"{what}; before -> after, % (points [95 % interval])"
    table = Table(title=plain(title), title_justify="left", title_style="", header_style="bold")
    accuracies = [name for name in TITLES if name.endswith("_accuracy")]
    shown = [name for name in accuracies if any(r.metric == f"{name}_change" for r in changes)]
    table.add_column("data set")
    for heading in ("images", *(TITLES[name] for name in shown)):
        table.add_column(heading, justify="right")
    for dataset in dict.fromkeys(r.dataset for r in changes):
        of = {r.metric.removesuffix("_change"): r for r in changes if r.dataset == dataset}
        texts = [
            change_text(r.before or 0.0, r.value, r.ci_low, r.ci_high) if (r := of.get(name)) is not None else "-"
            for name in shown
        ]
        table.add_row(plain(dataset), f"{next(iter(of.values())).n:,}", *(plain(text) for text in texts))
    out.print(table)


def interval_svg(lines: Sequence[Line], label: str) -> str:
    """Changes with their intervals around zero, one line each."""
    left, width, height = 260, 520, 26
    reach = max([1.0, *(abs(v) for line in lines for v in (line.low, line.high))]) * 1.08
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100) if reach / s <= 5)
    bottom = height * len(lines)

    def x(value: float) -> float:
        return left + width * (value + reach) / (2 * reach)

    count = int(reach / step)
    parts = [
        f'<line x1="{x(i * step):.1f}" x2="{x(i * step):.1f}" y1="0" y2="{bottom}" stroke="#8888" '
        f'stroke-width="{1.5 if i == 0 else 0.5}"/><text x="{x(i * step):.1f}" y="{bottom + 16}" text-anchor="middle">'
        f"{i * step:+g}</text>"
        for i in range(-count, count + 1)
    ]
    for i, line in enumerate(lines):
        y, colour = height * (i + 0.5), COLOURS[1] if line.high < 0 else COLOURS[0]
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(line.title, 38))}</text>'
            f'<line x1="{x(line.low):.1f}" x2="{x(line.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x(line.value):.1f}" cy="{y}" r="4" fill="{colour}"/>'
        )
    return _svg(left + width + 20, bottom + 24, label, parts)


def scatter_svg(
    points: tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]],
    labels: Sequence[int],
    classes: Sequence[str],
    label: str,
) -> str:
    """Points before and after side by side, on one scale, coloured by class."""
    side, gap, top = 330, 24, 22
    both = [*points[0], *points[1]]
    reach = max([1e-12, *(abs(v) for point in both for v in point)]) * 1.04
    parts = []
    for number, (title, cloud) in enumerate(zip(("before", "after, rotated back"), points, strict=True)):
        left = number * (side + gap)
        parts.append(
            f'<text x="{left}" y="14">{title}</text><rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" '
            f'stroke="#8888"/>'
        )
        for (px, py), k in zip(cloud, labels, strict=True):
            cx, cy = left + side * (px + reach) / (2 * reach), top + side * (reach - py) / (2 * reach)
            parts.append(
                f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.2" fill="{COLOURS[k % len(COLOURS)]}" fill-opacity=".75"/>'
            )
    for place, name in enumerate(classes[:_LEGEND]):
        lx, ly = (place % 4) * 170, top + side + 18 + 18 * (place // 4)
        parts.append(
            f'<circle cx="{lx + 6}" cy="{ly - 4}" r="4" fill="{COLOURS[place % len(COLOURS)]}"/>'
            f'<text x="{lx + 16}" y="{ly}">{escape(_short(name, 20))}</text>'
        )
    rows = -(-min(len(classes), _LEGEND) // 4)
    return _svg(2 * side + gap, top + side + 12 + 18 * rows, label, parts)


def write_page(
    path: Path, title: str, lead: Sequence[str], parts: Sequence[Panel | Drawing], notes: Sequence[tuple[str, str]]
) -> None:
    """Write the page: paragraphs, tables and drawings in order, and notes as preformatted text."""
    paragraphs = "".join(f'<p class="main">{escape(text)}</p>' for text in lead)
    body = "".join(_panel(part) if isinstance(part, Panel) else _drawing(part) for part in parts)
    notes_html = "".join(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>" for heading, text in notes)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>keepsight: {escape(title)}</title><style>{STYLE}td {{ white-space: nowrap; }}</style></head><body>"
        f"<h1>{escape(title)}</h1>{paragraphs}{body}{notes_html}</body></html>\n",
    )


def _panel(part: Panel) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in part.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in part.rows)
    return (
        f"<h2>{escape(part.heading)}</h2><p>{escape(part.text)}</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _drawing(part: Drawing) -> str:
    return f"<h2>{escape(part.heading)}</h2><figure>{part.svg}<figcaption>{escape(part.caption)}</figcaption></figure>"


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    # Its own colours, so that the file can be read alone; a page's style comes before attributes.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'font-family="sans-serif" font-size="13" aria-label="{escape(_short(label, 120))}">{"".join(parts)}</svg>'
    )


def _short(text: str, longest: int) -> str:
    """One line of printable characters (also of those that XML allows)."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
