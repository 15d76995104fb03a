"""Rectangles of image files as images of their own. Knows nothing of what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from PIL import Image

from keepsight.core import ImageList
from keepsight.data.files import read_image, unreadable


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of an image file.

    Attributes:
        name: The file, relative to the set's folder.
        box: Left, top, right, bottom, px from the upper left corner; the right column and the bottom row are not in it.
    """

    name: str
    box: tuple[int, int, int, int]


@final
class CroppedImages(ImageList):
    """Rectangles of image files, cut out when they are asked for.

    Args:
        root: The directory that names start from.
        crops: What to cut out.
    """

    def __init__(self, root: Path, crops: Sequence[Crop]) -> None:
        self._root, self._crops = root, tuple(crops)

    def __len__(self) -> int:
        return len(self._crops)

    def load(self, index: int) -> Image.Image:
        """The rectangle, as far as it lies within the image."""
        image = read_image(self._root / self._crops[index].name)
        left, top, right, bottom = self._crops[index].box
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        if right <= left or bottom <= top:
            raise unreadable(self.name(index), "its rectangle lies outside of the image: correct the annotation")
        return image.crop((left, top, right, bottom))

    def name(self, index: int) -> str:
        """The file and the rectangle."""
        crop = self._crops[index]
        return f"{crop.name}#{','.join(map(str, crop.box))}"

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the file's hash and the rectangle."""
        crop = self._crops[index]
        try:
            with (self._root / crop.name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise unreadable(crop.name, f"the system says '{error.strerror}'") from error
        return hashlib.sha256(digest + repr(crop.box).encode()).digest()
