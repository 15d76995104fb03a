"""A page as one HTML file: no network, no other file, nothing that runs but its own scripts. Adds looks, no content.

The policy in the file's head allows its own scripts and style, by their hashes, and nothing else: a text that were not escaped
could not run either. Charts are drawn by Vega's interpreter, which needs no `eval`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib import resources

from keepsight.report.page import Block, Chart, Listing, Page, Pictures, Section, Table, Text
from keepsight.report.vega import script

_NEVER = "base-uri 'none'; form-action 'none'"
_FIGURE = re.compile(r"[-+−±<≤>≥~]?\s?[\d.]")
_EMPTY = {"", "-", "–", "—", "none", "not measured", "n/a", "nan"}
_WIDEST_FIGURE = 60  # letters of a cell of figures
_LONG = 24  # letters from which a column of texts needs room
_TALL = 40  # rows from which a table scrolls in a box of its own
_GROUPS = 60  # groups of a chart from which the page offers no choice of one


def render_html(page: Page) -> str:
    """The page as HTML; the same page gives the same bytes."""
    body = "\n".join(_body(page))
    blocks = [block for section in page.sections for block in section.blocks]
    widths = sorted({block.width for block in blocks if isinstance(block, Pictures)})
    style = _file("page.css") + "".join(f".w{width} {{ --width: {width}px; }}\n" for width in widths)
    scripts = [script()] if any(isinstance(block, Chart) for block in blocks) else []
    scripts.append(_file("page.js"))
    allowed = " ".join(_hash(text) for text in scripts)
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed}; {_NEVER}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta name="generator" content="keepsight {escape(page.version)}">',
            f"<title>{escape(page.title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            body,
            *(f"<script>{text}</script>" for text in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


@cache
def _file(name: str) -> str:
    return resources.files("keepsight.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _json(value: object) -> str:
    """JSON for a script element of data: no `<`, which could end it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _body(page: Page) -> Iterator[str]:
    yield '<a class="skip" href="#report">Skip to the report</a>'
    yield '<div class="all">'
    yield f'<header><p class="kind">keepsight {escape(page.version)} · {escape(page.kind)}</p><h1>{escape(page.title)}</h1>'
    yield f'<p class="answer">{escape(page.answer)}</p>'
    yield from (f'<p class="facts">{escape(text)}</p>' for text in page.lead)
    yield "</header>"
    if len(page.sections) > 1:
        links = "".join(
            f'<li><a href="#s{number}"><bdi>{escape(section.title)}</bdi></a></li>'
            for number, section in enumerate(page.sections, 1)
        )
        yield f'<nav aria-label="Contents"><div><p>Contents</p><ol>{links}</ol></div></nav>'
    yield '<main id="report" tabindex="-1">'
    for number, section in enumerate(page.sections, 1):
        yield from _section(section, f"s{number}")
    yield "</main>"
    yield "</div>"


def _section(section: Section, name: str) -> Iterator[str]:
    yield f'<section aria-labelledby="{name}">'
    yield f'<h2 id="{name}">{escape(section.title)}</h2>'
    for number, block in enumerate(section.blocks, 1):
        yield from _block(block, f"{name}b{number}")
    yield "</section>"


def _block(block: Block, name: str) -> Iterator[str]:
    match block:
        case Text():
            lead = ' class="lead"' if block.lead else ""
            yield f"<p{lead}>{escape(block.text)}</p>"
        case Table():
            if block.title:
                yield f'<h3 id="{name}h">{escape(block.title)}</h3>'
            yield from _table(block, name, block.title or "Table")
        case Chart():
            yield from _chart(block, name)
        case Pictures():
            yield from _pictures(block, name)
        case Listing():
            yield from _listing(block)


def _columns(table: Table) -> list[str]:
    """The class of each column: "n" for figures, which go to the right, "w" for long texts, "" for others."""
    found = []
    for i in range(len(table.headings)):
        known = [cell for row in table.rows if (cell := row[i].strip()).lower() not in _EMPTY]
        longest = max(map(len, known), default=0)
        figures = i > 0 and bool(known) and longest < _WIDEST_FIGURE and all(map(_FIGURE.match, known))
        found.append("n" if figures else "w" if longest > (_LONG if i else _LONG // 2) else "")
    return found


def _table(table: Table, name: str, label: str) -> Iterator[str]:
    kinds = _columns(table)
    if table.filtered and len(table.rows) > 1:
        yield (
            f'<form class="filter" data-rows="{name}" role="search" aria-label="{escape(f"Rows of {label}")}" hidden>'
            f'<label for="{name}q">Filter rows</label><input id="{name}q" type="search" autocomplete="off" spellcheck="false">'
            '<output aria-live="polite"></output></form>'
        )
    tall = " tall" if len(table.rows) > _TALL else ""
    yield f'<div class="scroll{tall}" data-label="{escape(label)}"><table id="{name}">'
    unseen = "" if table.caption else ' class="unseen"'
    yield f"<caption><span{unseen}>{escape(table.caption or label)}</span></caption>"
    heads = (_cell("th", text, kind, "col") for text, kind in zip(table.headings, kinds, strict=True))
    yield f"<thead><tr>{''.join(heads)}</tr></thead><tbody>"
    marked = set(table.marked)
    for number, row in enumerate(table.rows):
        link = table.links[number] if table.links else ""
        first = _cell("th", row[0], kinds[0], "row", link)
        cells = first + "".join(_cell("td", text, kinds[i], "") for i, text in enumerate(row[1:], 1))
        yield f'<tr class="marked">{cells}</tr>' if number in marked else f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"


def _cell(tag: str, text: str, kind: str, scope: str, link: str = "") -> str:
    attributes = (f' scope="{scope}"' if scope else "") + (f' class="{kind}"' if kind else "")
    if tag == "th" and not text:
        tag, attributes = "td", ""  # a heading has a text
    shown = f'<a href="{escape(link)}">{escape(text)}</a>' if link else escape(text)
    return f"<{tag}{attributes}>{shown}</{tag}>"


def _chart(chart: Chart, name: str) -> Iterator[str]:
    yield f'<figure aria-labelledby="{name}h">'
    yield f'<h3 id="{name}h">{escape(chart.title)}</h3>'
    yield from _chooser(chart, name)
    label = escape(f"{chart.title}. {chart.description}")
    yield f'<div class="chart" role="img" aria-label="{label}" data-spec="{name}v"></div>'
    yield "<noscript><p>Charts need scripts; the table below holds the same figures.</p></noscript>"
    if chart.caption:
        yield f"<figcaption>{escape(chart.caption)}</figcaption>"
    title = chart.data.title or f"{chart.title}: the same as a table"
    yield f"<details><summary>{escape(title)}</summary>"
    yield from _table(chart.data, f"{name}t", title)
    yield "</details>"
    yield f'<script type="application/json" id="{name}v">{_json(chart.spec)}</script>'
    yield "</figure>"


def _chooser(chart: Chart, name: str) -> Iterator[str]:
    """The choice of a group, which a click in the legend does as well, for those without a mouse."""
    groups = _groups(chart.spec)
    if 1 < len(groups) <= _GROUPS:
        options = "".join(f'<option value="{escape(group)}">{escape(group)}</option>' for group in groups)
        yield f'<div class="filter" hidden><label for="{name}q">Show<span class="unseen"> in {escape(chart.title)}</span></label>'
        yield f'<select id="{name}q"><option value="" data-all="yes">all</option>{options}</select></div>'


def _groups(spec: object) -> list[str]:
    """The groups that the parameter `chosen` chooses from: the domain of the colours beside it."""
    if not isinstance(spec, dict):
        return []
    if any(isinstance(each, dict) and each.get("name") == "chosen" for each in spec.get("params", ())):
        inner = spec if "encoding" in spec else next(iter(spec.get("concat", ())), {})
        return list(inner.get("encoding", {}).get("color", {}).get("scale", {}).get("domain", ()))
    return next((found for layer in spec.get("layer", ()) if (found := _groups(layer))), [])


def _pictures(block: Pictures, name: str) -> Iterator[str]:
    if block.title:
        yield f'<h3 id="{name}h">{escape(block.title)}</h3>'
    if block.caption:
        yield f'<p class="caption">{escape(block.caption)}</p>'
    yield f'<ul class="pictures w{block.width}">'
    for each in block.pictures:
        caption = f"<span>{escape(each.caption)}</span>" if each.caption else ""
        marked = ' class="marked"' if each.marked else ""
        yield f'<li{marked}><img src="{escape(each.source)}" alt="{escape(each.alt)}">{caption}</li>'
    yield "</ul>"


def _listing(block: Listing) -> Iterator[str]:
    text = f'<pre data-label="{escape(block.title)}">\n{escape(block.text)}</pre>'
    if block.shown:
        yield f"<h3>{escape(block.title)}</h3>{text}"
    else:
        yield f'<details class="printed"><summary>{escape(block.title)}</summary>{text}</details>'
