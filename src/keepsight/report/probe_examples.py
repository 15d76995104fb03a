"""Test items with their answers, and where networks look, as galleries for a page. Knows no probe and no folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.report.attention_pictures import attention_pictures
from keepsight.report.galleries import Gallery
from keepsight.report.page import Picture, Pictures, picture

LARGEST = 176
"""Longer side of a test item, px."""

STRIP = 480
"""Width of an image with its maps, px."""


@dataclass(frozen=True, slots=True)
class Item:
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


def probe_galleries(items: Sequence[Item], looks: Sequence[Looks]) -> list[Gallery]:
    """One gallery for the test items of each probe, and one for each kind of map."""
    made = [_items(probe, items) for probe in dict.fromkeys(item.probe for item in items)]
    return made + [_looks(each) for each in looks]


def _items(probe: str, items: Sequence[Item]) -> Gallery:
    chosen = [item for item in items if item.probe == probe]
    both = any(item.said_before is not None for item in chosen)
    first = " First those whose answer turned, so that they are no fair sample;" if both else ""
    pictures = tuple(_item(item) for item in chosen)
    caption = f"Test items.{first} wrong answers are set off." if both else "Test items; wrong answers are set off."
    return Gallery(of=probe, pictures=Pictures(title=probe, caption=caption, pictures=pictures, width=LARGEST))


def _item(item: Item) -> Picture:
    lines = [f"truth: {item.truth}"]
    if item.said_before is not None:
        lines.append(f"before: {item.said_before} ({_verdict(bool(item.right_before))})")
    lines.append(f"{'answer' if item.said_before is None else 'after'}: {item.said} ({_verdict(item.right)})")
    alt = f"test item of {item.probe}: {item.truth}"
    return picture(item.image, alt, "; ".join(lines), longest=LARGEST, marked=not item.right)


def _looks(looks: Looks) -> Gallery:
    titles = ", ".join(looks.titles)
    strips = tuple(
        picture(
            attention_pictures([image], [[maps[number]] for maps in looks.maps], looks.titles),
            f"image {number + 1}, and where the class token looks in it: {titles}",
            f"image {number + 1}",
            longest=STRIP,
        )
        for number, image in enumerate(looks.images)
    )
    said = (
        f"Where the class token looks: the image, then {titles}; from dark blue (nowhere) to yellow (most), on one scale for all "
        "maps of an image."
    )
    block = Pictures(title=f"{looks.probe}: {looks.name}", caption=said, pictures=strips, width=STRIP)
    return Gallery(of=looks.probe, kind="attention", pictures=block)


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"
