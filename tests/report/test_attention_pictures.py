"""Attention laid over images, before and after."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keepsight.report.attention_pictures import LEAST, RAMP, attention_pictures, overlay


def luminance(colour: np.ndarray) -> float:
    return float(colour @ (0.2126, 0.7152, 0.0722))


def test_more_attention_is_lighter_for_every_reader() -> None:
    steps = [luminance(colour) for colour in RAMP]
    assert steps == sorted(steps)
    values = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, axis=0)
    pixels = np.asarray(overlay(Image.new("RGB", (64, 64), (90, 90, 90)), values, 1.0)).astype(float)
    across = (pixels[LEAST // 2] @ (0.2126, 0.7152, 0.0722))[::30]
    assert (np.diff(across) > 0).all()
    dark, light = pixels[0, 0], pixels[0, -1]
    assert dark[2] > dark[0]  # blue
    assert light[0] > light[2] + 50  # yellow


def test_a_row_is_the_image_and_its_maps_on_one_scale() -> None:
    images = [Image.new("RGB", (LEAST, LEAST)), Image.new("RGB", (LEAST, LEAST), "white")]
    weak, strong = np.full((4, 4), 0.01, np.float32), np.full((4, 4), 0.04, np.float32)
    picture = attention_pictures(images, [[weak, weak], [strong, strong]])
    assert picture.width == 3 * LEAST + 2 * 6
    before, after = picture.getpixel((LEAST + 6 + 50, 50)), picture.getpixel((2 * LEAST + 12 + 50, 50))
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    assert sum(after) > sum(before) + 100
    assert picture.getpixel((50, 50)) == (0, 0, 0)
    with pytest.raises(ValueError, match="title"):
        attention_pictures(images, [[weak]])
