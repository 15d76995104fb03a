"""Images with one region of each marked by a frame that is drawn on the picture. Knows nothing of what is in the region."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import final

from PIL import Image, ImageDraw
from pydantic import Field

from keepsight.core import Config, ImageList

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in shares of the image's sides."""


class MarkConfig(Config):
    """How a region is marked.

    Attributes:
        colour: Of the frame, RGB of 0 to 255. Red is what image-text models are known to follow (Shtedritski et al. 2023,
            arXiv 2304.06712).
        width: Of the frame, as a share of the image's shorter side; at least 1 px.
    """

    colour: tuple[int, int, int] = (255, 0, 0)
    width: float = Field(default=0.03, gt=0, lt=0.5)


@final
class MarkedImages(ImageList):
    """Some images, in the given order, each with a frame around a box or, where the box is None, as it is.

    Args:
        images: The whole list.
        rows: M indices into it.
        boxes: M boxes.
        config: Colour and width.
    """

    def __init__(
        self,
        images: ImageList,
        rows: Sequence[int],
        boxes: Sequence[Box | None],
        config: MarkConfig | None = None,
    ) -> None:
        if len(rows) != len(boxes) or not all(0 <= row < len(images) for row in rows):
            raise ValueError("every image needs a row of the list and a box or None")
        self._images, self._rows, self._boxes = images, tuple(rows), tuple(boxes)
        self._config = config or MarkConfig()

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> Image.Image:
        """The image, with its frame."""
        image, box = self._images.load(self._rows[index]), self._boxes[index]
        return image if box is None else marked(image, box, self._config)

    def name(self, index: int) -> str:
        """The image's name in the whole list."""
        name = self._images.name(self._rows[index])
        return name if self._boxes[index] is None else f"{name} (marked)"

    def content_hash(self, index: int) -> bytes:
        """That of the image in the whole list, so that cached features are shared; with a frame, of the frame as well."""
        digest, box = self._images.content_hash(self._rows[index]), self._boxes[index]
        if box is None:
            return digest
        return hashlib.sha256(digest + f"frame {box} {self._config.model_dump_json()}".encode()).digest()


def marked(image: Image.Image, box: Box, config: MarkConfig) -> Image.Image:
    """A copy with a frame close around the box; at the image's border the frame is drawn within it.

    Example:
        >>> out = marked(Image.new("RGB", (100, 100)), (0.5, 0.5, 0.7, 0.7), MarkConfig(width=0.02))
        >>> out.getpixel((49, 60)), out.getpixel((50, 60))
        ((255, 0, 0), (0, 0, 0))
    """
    out = image.convert("RGB")
    width = max(1, round(config.width * min(image.size)))
    left, right = _ends(box[0], box[2], image.width, width)
    top, bottom = _ends(box[1], box[3], image.height, width)
    ImageDraw.Draw(out).rectangle((left, top, right, bottom), outline=config.colour, width=width)
    return out


def _ends(low: float, high: float, length: int, width: int) -> tuple[int, int]:
    """First and last pixel of a frame around low to high, both inclusive."""
    first = min(max(0, round(low * length) - width), length - 1)
    return first, max(first, min(length - 1, round(high * length) + width - 1))
