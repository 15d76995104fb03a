"""A page as Markdown: charts as the tables of their figures, pictures as a list of what they show. Adds no content."""

from __future__ import annotations

import re
from collections.abc import Iterator

from keepsight.report.page import Block, Chart, Listing, Page, Picture, Pictures, Table, Text

_SPECIAL = re.compile(  # marks of emphasis, code, tables, mathematics, tags and links; what opens a heading, a rule or an item
    r"([\\`*_\[\]<>|~$&@]|:(?=//)|(?<=www)\.|^[#=]|^[+-](?=[\s+-]|$)|(?:(?<=^\d)|(?<=^\d\d)|(?<=^\d{3}))[.)](?=\s|$))"
)
_SPACE = re.compile(r"\s+")


def render_markdown(page: Page) -> str:
    """The page as Markdown (CommonMark with GitHub's tables); every text is escaped, none becomes a link or a tag."""
    parts = [f"# {_text(page.title)}", f"**{_text(page.answer)}**", *map(_text, page.lead)]
    for section in page.sections:
        parts.append(f"## {_text(section.title)}")
        parts += [part for block in section.blocks for part in _block(block)]
    parts.append(_text(f"keepsight {page.version}, {page.kind}"))
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    """On one line, nothing in it special to Markdown."""
    return _SPECIAL.sub(r"\\\1", _SPACE.sub(" ", text).strip())


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text():
            yield f"**{_text(block.text)}**" if block.lead else _text(block.text)
        case Table():
            yield from _titled(block.title, block.caption)
            yield _table(block)
        case Chart():
            yield from _titled(block.title, block.description, block.caption, block.data.caption)
            yield _table(block.data)
        case Pictures():
            yield from _titled(block.title, block.caption)
            yield "\n".join(_picture(picture) for picture in block.pictures)
        case Listing():
            yield from _titled(block.title)
            fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", block.text)), default=0))
            yield f"{fence}text\n{block.text.rstrip()}\n{fence}"


def _titled(title: str, *texts: str) -> Iterator[str]:
    if title:
        yield f"### {_text(title)}"
    yield from (_text(text) for text in texts if text)


def _picture(picture: Picture) -> str:
    said = ": ".join(_text(text) for text in (picture.alt, picture.caption) if text)
    return f"- **{said}**" if picture.marked else f"- {said}"


def _table(table: Table) -> str:
    lines = [f"| {' | '.join(map(_text, table.headings))} |", f"|{' --- |' * len(table.headings)}"]
    for number, row in enumerate(table.rows):
        cells = [_text(cell) for cell in row]
        if number in table.marked:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
