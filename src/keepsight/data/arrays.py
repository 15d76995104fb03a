"""Images that are already in memory, as one array or as Pillow images. Knows nothing of labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from keepsight.core import ImageList, UserError
from keepsight.data.files import unreadable
from keepsight.data.pixels import AS_STORED, PixelConfig, PixelError, Values, to_image, to_rgb


class ArrayImages(ImageList):
    """Images [N, H, W], [N, H, W, C] or (by `pixels.channels_first`) [N, C, H, W]; each is called by its number.

    Without further settings they are uint8 or uint16, grey, RGB or RGBA; other types need a range, other numbers of channels a
    choice (see `PixelConfig`).

    Raises:
        UserError: for any other type or shape.

    Example:
        >>> ArrayImages(np.zeros((2, 8, 6), np.uint8)).load(0).size
        (6, 8)
    """

    def __init__(self, values: Values, pixels: PixelConfig = AS_STORED) -> None:
        if values.ndim not in (3, 4) or 0 in values.shape[1:] or values.dtype.kind not in "buif":
            raise UserError(
                f"Images given as an array must be numbers (such as uint8, 0 to 255) of shape [N, H, W] or [N, H, W, C], but "
                f"this one is {values.dtype} of shape {list(values.shape)}."
            )
        self._values, self._pixels = values, pixels
        if len(values):  # what holds for the type and shape of one holds for all; values are looked at image by image
            try:
                to_image(np.zeros_like(values[0]), pixels)
            except PixelError as error:
                raise UserError(
                    f"Images given as an array of {values.dtype} and shape {list(values.shape)} cannot be read, because of the "
                    f"first one {error}."
                ) from error

    def __len__(self) -> int:
        return len(self._values)

    def load(self, index: int) -> Image.Image:
        """The image as RGB."""
        try:
            return to_image(self._values[index], self._pixels)
        except PixelError as error:
            raise unreadable(f"number {index} of the array", str(error)) from error

    def name(self, index: int) -> str:
        """The image's number."""
        return str(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the shape and, unless it is uint8, the type (as text), and the values; and of the settings."""
        image = np.ascontiguousarray(self._values[index])
        kind = "" if image.dtype == np.uint8 else image.dtype.str
        return self._pixels.content_hash(hashlib.sha256(f"{image.shape}{kind}".encode() + image.tobytes()).digest())


class PillowImages(ImageList):
    """Pillow images of any mode and size; each is called by its number.

    Example:
        >>> PillowImages([Image.new("L", (3, 2))]).load(0).mode
        'RGB'
    """

    def __init__(self, images: Sequence[Image.Image], pixels: PixelConfig = AS_STORED) -> None:
        self._images, self._pixels = tuple(images), pixels

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        """The image as upright RGB."""
        try:
            return to_rgb(self._images[index], self._pixels)
        except PixelError as error:
            raise unreadable(f"number {index} of the list", str(error)) from error

    def name(self, index: int) -> str:
        """The image's number."""
        return str(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the size and the RGB pixels, which the settings are part of already."""
        image = self.load(index)
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
