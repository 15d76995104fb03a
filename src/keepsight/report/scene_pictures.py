"""Boxes, masks and captions drawn on pictures. Knows no head and no file of answers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours: told apart by colour-blind readers, too.
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))


@dataclass(frozen=True, slots=True)
class Shown:
    """One object to draw.

    Attributes:
        box: Left, top, right, bottom, px.
        label: Written at the box.
        colour: Index into `COLOURS`, taken modulo their number.
        mask: [h, w], or None.
    """

    box: tuple[float, float, float, float]
    label: str
    colour: int
    mask: NDArray[np.bool_] | None = None


def drawn(image: Image.Image, objects: Sequence[Shown], caption: str = "", least: int = 240) -> Image.Image:
    """The picture with masks, boxes and labels on it, and the caption below; small ones are enlarged to `least` px a side."""
    factor = max(1.0, least / min(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    out = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    for one in objects:
        if one.mask is not None:
            colour = Image.new("RGB", size, COLOURS[one.colour % len(COLOURS)])
            veil = Image.fromarray((one.mask * 110).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
            out.paste(colour, mask=veil)
    pen = ImageDraw.Draw(out)
    font = ImageFont.load_default(12)
    for one in objects:
        colour_of = COLOURS[one.colour % len(COLOURS)]
        left, top, right, bottom = (float(side) * factor for side in one.box)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour_of, width=2)
        text = _line(one.label, 28)
        at = (min(left, size[0] - 20), max(0.0, top - 15))
        pen.rectangle(pen.textbbox(at, text, font=font), fill=colour_of)
        pen.text(at, text, fill=(0, 0, 0) if sum(colour_of) > 400 else (255, 255, 255), font=font)
    return _with_caption(out, caption, font) if caption else out


def _with_caption(image: Image.Image, caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    lines = textwrap.wrap(_line(caption, 300), max(10, image.width // 7)) or [""]
    out = Image.new("RGB", (image.width, image.height + 15 * len(lines) + 6), (255, 255, 255))
    out.paste(image, (0, 0))
    pen = ImageDraw.Draw(out)
    for number, line in enumerate(lines):
        pen.text((3, image.height + 3 + 15 * number), line, fill=(0, 0, 0), font=font)
    return out


def _line(text: str, longest: int) -> str:
    """One line of characters that can be drawn."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def sheet(pictures: Sequence[Image.Image], columns: int = 4, gap: int = 6) -> Image.Image:
    """Pictures side by side and below each other, on white."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = max(sum(p.width for p in row) + gap * (len(row) - 1) for row in rows)
    height = sum(max(p.height for p in row) for row in rows) + gap * (len(rows) - 1)
    out, top = Image.new("RGB", (width, height), (255, 255, 255)), 0
    for row in rows:
        left = 0
        for picture in row:
            out.paste(picture, (left, top))
            left += picture.width + gap
        top += max(p.height for p in row) + gap
    return out
