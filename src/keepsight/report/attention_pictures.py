"""Pictures of where backbones look: the image, and one overlay a backbone. Knows no backbone and no probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.report.scene_pictures import drawn, sheet

# From dark blue over grey to yellow, ever lighter: the ends and the middle of cividis, which colour-blind readers see like others.
RAMP = np.array([(0, 34, 78), (124, 123, 120), (254, 232, 56)], dtype=np.float64)

OPACITY = 0.6
LEAST = 240  # px: the side of a picture


def overlay(image: Image.Image, values_hw: NDArray[np.floating[Any]], highest: float) -> Image.Image:
    """A map laid over the grey picture: dark blue where it is 0, yellow where it is `highest` or more.

    Args:
        image: Which the map covers from side to side.
        values_hw: None negative.
        highest: Positive; the same for maps that are to be compared.
    """
    factor = max(1.0, LEAST / min(image.size))
    size = (round(image.width * factor), round(image.height * factor))
    share = np.clip(np.asarray(values_hw, dtype=np.float64) / highest, 0, 1)
    smooth = np.asarray(Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(smooth, stops, RAMP[:, channel]) for channel in range(3)], axis=2)
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float64)[..., None]
    return Image.fromarray(np.rint(OPACITY * colours + (1 - OPACITY) * grey).astype(np.uint8))


def attention_pictures(
    images: Sequence[Image.Image],
    maps: Sequence[Sequence[NDArray[np.floating[Any]]]],
    titles: Sequence[str] = ("before", "after"),
) -> Image.Image:
    """One row an image: the image, and its map by each backbone; the maps of one image share a scale.

    Args:
        images: At least one.
        maps: Of each backbone the map [h, w] of each image.
        titles: Of the backbones.
    """
    if not images or len(maps) != len(titles) or any(len(each) != len(images) for each in maps):
        raise ValueError("every backbone needs a title and a map of each image")
    pictures = []
    for number, image in enumerate(images):
        highest = max(max(float(each[number].max()) for each in maps), 1e-12)
        pictures.append(drawn(image, (), "image", LEAST))
        pictures += [
            drawn(overlay(image, each[number], highest), (), title, LEAST)
            for each, title in zip(maps, titles, strict=True)
        ]
    return sheet(pictures, columns=1 + len(maps))
