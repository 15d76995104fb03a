"""Opaque stripes over images: a nuisance of known geometry, made anew at each load. Knows nothing of where images come from.

Pixel (x, y), column and row from 0, is covered where ((x cos t + y sin t + offset) mod spacing) < width. For every image t is
uniform in [0, pi) and offset in [0, spacing), by the seed and the image's index alone: stripes of two colours on the same images
lie at the same places.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import final, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import Dataset, ImageList, UserError

COLOURS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "yellow": (255, 165, 79)}
"""The colours that have a name, as RGB."""

Colour = str | tuple[int, int, int]


@overload
def with_stripes(
    images: Dataset, colour: Colour, spacing: float = 9.0, width: float = 3.5, seed: int = 0
) -> Dataset: ...


@overload
def with_stripes(
    images: NDArray[np.uint8], colour: Colour, spacing: float = 9.0, width: float = 3.5, seed: int = 0
) -> NDArray[np.uint8]: ...


def with_stripes(
    images: Dataset | NDArray[np.uint8], colour: Colour, spacing: float = 9.0, width: float = 3.5, seed: int = 0
) -> Dataset | NDArray[np.uint8]:
    """The images under opaque stripes, as RGB; a share of about width / spacing of every image is covered.

    Args:
        images: A data set, of which images get their stripes when they are loaded and labels and parts stay; or pixels [N, H, W] or
            [N, H, W, 3] uint8, of which a copy [N, H, W, 3] is made.
        colour: 'white' (255, 255, 255), 'yellow' (255, 165, 79), or RGB from 0 to 255.
        spacing: From one stripe to the next, in pixels of the image.
        width: Of a stripe, in pixels.
        seed: Seed of the angles and offsets. The same seed gives every colour the same geometry.

    Raises:
        UserError: for another colour, unless 0 < width <= spacing, for a negative seed, or for pixels of another type or shape.

    Example:
        >>> white = with_stripes(np.zeros((2, 28, 28), np.uint8), "white")
        >>> yellow = with_stripes(np.zeros((2, 28, 28), np.uint8), "yellow")
        >>> white.shape, bool(((white > 0).any(axis=3) == (yellow > 0).any(axis=3)).all())
        ((2, 28, 28, 3), True)
    """
    rgb = _rgb(colour)
    if not 0 < width <= spacing or not math.isfinite(spacing):
        raise UserError(
            f"Stripes {width} pixels wide cannot be {spacing} pixels apart: 0 < width <= spacing was expected."
        )
    if seed < 0:
        raise UserError(f"The seed of the stripes is {seed}: a whole number from 0 was expected.")
    if isinstance(images, Dataset):
        suffix = f"{colour}-stripes" if isinstance(colour, str) else "stripes"
        striped = StripedImages(images.images, rgb, spacing, width, seed)
        return replace(images, name=f"{images.name}-{suffix}", images=striped)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UserError(
            f"Stripes need pixels of type uint8 and shape [N, H, W] or [N, H, W, 3], but these are {images.dtype} of shape "
            f"{list(images.shape)}."
        )
    pixels_NHWC = np.array(images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3))
    for index, pixels_HWC in enumerate(pixels_NHWC):
        angle, offset = _geometry(seed, index, spacing)
        pixels_HWC[stripe_mask(pixels_HWC.shape[0], pixels_HWC.shape[1], angle, offset, spacing, width)] = rgb
    return pixels_NHWC


def stripe_mask(
    height: int, width: int, angle: float, offset: float, spacing: float = 9.0, stripe: float = 3.5
) -> NDArray[np.bool_]:
    """Where the stripes are, [H, W]: ((x cos angle + y sin angle + offset) mod spacing) < stripe.

    Args:
        height: H, rows y.
        width: W, columns x.
        angle: Radians from the x axis to the direction across the stripes.
        offset: In pixels.
        spacing: From one stripe to the next, in pixels.
        stripe: Width of a stripe, in pixels.

    Example:
        >>> stripe_mask(1, 6, angle=0.0, offset=0.0, spacing=3.0, stripe=1.0).astype(int).tolist()
        [[1, 0, 0, 1, 0, 0]]
    """
    y_HW, x_HW = np.mgrid[:height, :width]
    mask_HW: NDArray[np.bool_] = (x_HW * math.cos(angle) + y_HW * math.sin(angle) + offset) % spacing < stripe
    return mask_HW


@final
class StripedImages(ImageList):
    """A view of images under stripes; nothing is stored. See `with_stripes`, which checks the arguments."""

    def __init__(
        self, images: ImageList, rgb: tuple[int, int, int], spacing: float = 9.0, width: float = 3.5, seed: int = 0
    ) -> None:
        self._images, self._rgb, self._spacing, self._width, self._seed = images, rgb, spacing, width, seed

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        """The image as RGB, with its stripes."""
        pixels_HWC = np.array(self._images.load(index))
        angle, offset = _geometry(self._seed, index, self._spacing)
        height, width = pixels_HWC.shape[:2]
        pixels_HWC[stripe_mask(height, width, angle, offset, self._spacing, self._width)] = self._rgb
        return Image.fromarray(pixels_HWC)

    def name(self, index: int) -> str:
        """The name of the image below the stripes."""
        return self._images.name(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the hash of the image below, and of the stripes: their place, size and colour."""
        stripes = (*_geometry(self._seed, index, self._spacing), float(self._spacing), float(self._width), self._rgb)
        return hashlib.sha256(self._images.content_hash(index) + f"stripes {stripes!r}".encode()).digest()


def _geometry(seed: int, index: int, spacing: float) -> tuple[float, float]:
    """The angle in [0, pi) and the offset in [0, spacing) of one image."""
    angle, offset = np.random.default_rng((seed, index)).random(2)
    return float(angle) * math.pi, float(offset) * spacing


def _rgb(colour: Colour) -> tuple[int, int, int]:
    if isinstance(colour, str):
        if colour not in COLOURS:
            raise UserError(
                f"There is no colour {colour!r} for stripes: choose {', '.join(COLOURS)}, or give (red, green, blue)."
            )
        return COLOURS[colour]
    if len(colour) != 3 or not all(isinstance(value, int | np.integer) and 0 <= value <= 255 for value in colour):
        raise UserError(f"The colour of the stripes is {colour!r}: three whole numbers from 0 to 255 were expected.")
    return int(colour[0]), int(colour[1]), int(colour[2])
