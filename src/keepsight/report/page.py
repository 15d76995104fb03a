"""What a report says, as data: sections of text, tables, charts and pictures. Knows no run, no HTML and no Markdown.

A page is the whole content of a report. report.json holds it; the renderers (`report.html`, `report.markdown`) add nothing to it
but looks, so that a page that was read back gives the same files.

All texts are plain: whoever makes a block gives labels, names and captions as they are, and the renderers escape them. In a chart
a user's text may stand among the values, as a title and in a list of values (`domain`, `sort`); never as the name of a field and
never in an expression.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, ValidationError, field_validator, model_validator

from keepsight.core import Config, UserError

JSON = "report.json"

_LINK = re.compile(r"(?!\.*/)(?!.*\.\.)[A-Za-z0-9._-][A-Za-z0-9._/-]*")
_DATA = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


class Text(Config):
    """A paragraph; `lead` sets it off."""

    kind: Literal["text"] = "text"
    text: str
    lead: bool = False


class Table(Config):
    """Rows of texts below headings; the first column names the row.

    Attributes:
        title: Above it.
        caption: What is measured, n, what an interval covers.
        headings: Of the columns.
        rows: As many texts each as there are headings.
        marked: Numbers of the rows that are set off (the recommended method).
        filtered: Whether the page offers to filter the rows by what is typed.
        links: Where the first text of each row leads, relative to the page; "" for nowhere. Empty where no row leads anywhere. Only
            the list that `keepsight ui` serves has any.
    """

    kind: Literal["table"] = "table"
    title: str = ""
    caption: str = ""
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[int, ...] = ()
    filtered: bool = False
    links: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _even(self) -> Table:
        if any(len(row) != len(self.headings) for row in self.rows):
            raise ValueError("every row of a table needs as many texts as there are headings")
        if self.links and len(self.links) != len(self.rows):
            raise ValueError("a table with links needs one for every row, if an empty one")
        if any(link and not _LINK.fullmatch(link) for link in self.links):
            raise ValueError("a link is a relative address of letters, digits, dots, dashes, underscores and slashes")
        return self


class Chart(Config):
    """A figure, and the same as a table for those who cannot see it.

    Attributes:
        title: Above it.
        caption: Below it: units, n, what the intervals are.
        description: What it shows, in a sentence, for a screen reader.
        spec: Vega-Lite, with its data inside and without addresses; made by `report.charts`, which leaves colours and fonts to the
            page.
        data: What is drawn.
    """

    kind: Literal["chart"] = "chart"
    title: str
    caption: str
    description: str
    spec: dict[str, Any]
    data: Table


class Picture(Config):
    """A picture inside of the page.

    Attributes:
        source: data:image/png, jpeg or webp, base64; `picture` makes it.
        alt: What is to be seen.
        caption: Below it.
        marked: Set off (a wrong answer).
    """

    source: str
    alt: str
    caption: str = ""
    marked: bool = False

    @field_validator("source")
    @classmethod
    def _inside(cls, source: str) -> str:
        if not _DATA.fullmatch(source):
            raise ValueError("a picture is a PNG, JPEG or WebP inside of the page")
        return source


class Pictures(Config):
    """Pictures in a grid, `width` CSS px each at most."""

    kind: Literal["pictures"] = "pictures"
    title: str = ""
    caption: str = ""
    pictures: tuple[Picture, ...]
    width: int = Field(default=160, ge=16, le=1200)


class Listing(Config):
    """Preformatted text: settings, an environment, a command; folded away unless `shown`."""

    kind: Literal["listing"] = "listing"
    title: str
    text: str
    shown: bool = False


Block = Annotated[Text | Table | Chart | Pictures | Listing, Field(discriminator="kind")]


class Section(Config):
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


class Page(Config):
    """A report.

    Attributes:
        version: keepsight's.
        kind: Of the run: "tune", "compare", "visft", "sweep", "retention", "probe", "forgetting", or "runs" for several.
        title: Heading of the page.
        answer: The answer in one sentence, which stands above everything.
        lead: Below the answer: data, backbone, n, seeds.
        sections: In their order. Those without a block are left out by `page`.
    """

    version: str
    kind: str
    title: str
    answer: str
    lead: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def read_page(path: Path) -> Page:
    """The page in a report.json; UserError where it is none."""
    try:
        return Page.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise UserError(f"{path} is no report of keepsight: give a run's folder, or the report.json in it.") from error


def picture(image: Image.Image, alt: str, caption: str = "", *, longest: int = 160, marked: bool = False) -> Picture:
    """A picture for a page: shrunk until its longer side has `longest` px, as JPEG, or as PNG where that is smaller."""
    small = image.convert("RGB")
    if max(small.size) > longest:
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    written = []
    for form, options in (("jpeg", {"quality": 85}), ("png", {"optimize": True})):
        buffer = io.BytesIO()
        small.save(buffer, format=form, **options)
        written.append((len(buffer.getvalue()), form, buffer.getvalue()))
    _, form, data = min(written)
    return Picture(
        source=f"data:image/{form};base64,{base64.b64encode(data).decode()}", alt=alt, caption=caption, marked=marked
    )


def sections(made: Sequence[tuple[str, Sequence[Block | None]]]) -> tuple[Section, ...]:
    """Sections from titles and blocks; blocks that are None and sections without a block are left out."""
    found = ((title, tuple(block for block in blocks if block is not None)) for title, blocks in made)
    return tuple(Section(title=title, blocks=blocks) for title, blocks in found if blocks)
