"""Images that are already in memory, as one uint8 array or as Pillow images. Knows nothing of labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import ImageList, UserError
from keepsight.data.files import to_rgb


class ArrayImages(ImageList):
    """Grey images [N, H, W] or RGB images [N, H, W, 3], uint8; each is called by its number.

    Raises:
        UserError: for any other type or shape.

    Example:
        >>> ArrayImages(np.zeros((2, 8, 6), np.uint8)).load(0).size
        (6, 8)
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        shape_fits = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
        if pixels.dtype != np.uint8 or not shape_fits or 0 in pixels.shape[1:]:
            raise UserError(
                f"Images given as an array must be uint8 (0 to 255) of shape [N, H, W] or [N, H, W, 3], but this one "
                f"is {pixels.dtype} of shape {list(pixels.shape)}."
            )
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def load(self, index: int) -> Image.Image:
        """The image as RGB."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        """The image's number."""
        return str(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the shape (as text) and the pixels."""
        image = np.ascontiguousarray(self._pixels[index])
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()


class PillowImages(ImageList):
    """Pillow images of any mode and size; each is called by its number.

    Example:
        >>> PillowImages([Image.new("L", (3, 2))]).load(0).mode
        'RGB'
    """

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self._images = tuple(images)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        """The image as upright RGB."""
        return to_rgb(self._images[index])

    def name(self, index: int) -> str:
        """The image's number."""
        return str(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the size and the RGB pixels."""
        image = self.load(index)
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
