"""A page of pictures in grids, and tables: no scripts, no outside files. All text is escaped; knows no model and no data set."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from keepsight.core.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --mark: #c23b22; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaef; --soft: #9aa5b1; --line: #3a424c; --mark: #ff8a70; --page: #15191e; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, p, td, table.grid th { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
p { color: var(--soft); max-width: 46rem; }
p.main { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.figures td, table.figures th { text-align: right; padding: .35rem .8rem; border-bottom: 1px solid var(--line); }
table.figures td:first-child, table.figures th:first-child { text-align: left; }
table.grid td, table.grid th { padding: 3px; text-align: center; vertical-align: top; font-size: .75rem; line-height: 1.2;
  font-weight: 400; max-width: 6rem; }
table.grid th { background: color-mix(in srgb, var(--line) 55%, transparent); }
table.grid td.apart, table.grid th.apart { border-left: 10px solid var(--page); }
.other { color: var(--mark); font-weight: 600; }
.picture { display: block; width: 56px; height: 56px; margin: 0 auto 2px; background: center / contain no-repeat;
  image-rendering: pixelated; print-color-adjust: exact; }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A place in a grid: a picture (by its number in `pictures`), or none, and what stands below it.

    Attributes:
        picture: Number, or None for text alone.
        caption: Below the picture.
        title: Shown when the mouse rests on it; read by screen readers.
        marked: Set off in colour.
        apart: With a gap before it.
    """

    picture: int | None
    caption: str
    title: str = ""
    marked: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures in rows; the first row and the first column of each are headers."""

    heading: str
    text: str
    header: Sequence[Shown]
    rows: Sequence[Sequence[Shown]]


@dataclass(frozen=True, slots=True)
class Figures:
    """A table of texts."""

    heading: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(
    path: Path, title: str, lead: Sequence[str], parts: Sequence[Grid | Figures], pictures: Mapping[int, bytes]
) -> None:
    """Write the page.

    Args:
        path: Where to.
        title: Heading.
        lead: Paragraphs below it.
        parts: Grids and tables, in order.
        pictures: PNG files by number; each is on the page once, wherever it is shown.
    """
    images = "".join(
        f".p{number}{{background-image:url(data:image/png;base64,{base64.b64encode(png).decode()})}}\n"
        for number, png in sorted(pictures.items())
    )
    paragraphs = "".join(f'<p class="main">{escape(text)}</p>' for text in lead)
    body = "".join(_grid(part) if isinstance(part, Grid) else _figures(part) for part in parts)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>keepsight: {escape(title)}</title><style>{_STYLE}{images}</style></head><body><h1>{escape(title)}</h1>"
        f"{paragraphs}{body}</body></html>\n",
    )


def _grid(part: Grid) -> str:
    head = "".join(_cell(shown, "th") for shown in part.header)
    rows = "".join(
        "<tr>" + "".join(_cell(shown, "td" if i else "th") for i, shown in enumerate(row)) + "</tr>"
        for row in part.rows
    )
    return (
        f"<h2>{escape(part.heading)}</h2><p>{escape(part.text)}</p>"
        f'<div class="scroll"><table class="grid"><tr>{head}</tr>{rows}</table></div>'
    )


def _cell(shown: Shown, tag: str) -> str:
    picture = ""
    if shown.picture is not None:
        title = escape(shown.title)
        picture = f'<span class="picture p{shown.picture}" role="img" aria-label="{title}" title="{title}"></span>'
    caption = escape(shown.caption)
    marked = f'<span class="other">{caption}</span>' if shown.marked else caption
    apart = ' class="apart"' if shown.apart else ""
    return f"<{tag}{apart}>{picture}{marked}</{tag}>"


def _figures(part: Figures) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in part.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in part.rows)
    return (
        f"<h2>{escape(part.heading)}</h2><p>{escape(part.text)}</p>"
        f'<div class="scroll"><table class="figures"><tr>{head}</tr>{rows}</table></div>'
    )
