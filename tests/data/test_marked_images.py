"""Frames drawn around regions of images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keepsight.core import ImageList
from keepsight.data.marked_images import MarkConfig, MarkedImages, marked


def red(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) == (255, 0, 0)).all(axis=2)


def test_a_frame_is_around_its_box_and_leaves_the_rest() -> None:
    grey = Image.new("RGB", (40, 20), (90, 90, 90))
    found = red(marked(grey, (0.25, 0.25, 0.5, 0.75), MarkConfig(width=0.1)))
    expected = np.zeros((20, 40), bool)
    expected[3:17, 8:22] = True
    expected[5:15, 10:20] = False
    assert (found == expected).all()
    assert not red(grey).any()


def test_a_frame_at_the_border_stays_within_the_image() -> None:
    found = red(marked(Image.new("RGB", (30, 30)), (0, 0, 1, 1), MarkConfig(width=0.1)))
    assert found[:3].all()
    assert found[-3:].all()
    assert found[:, :3].all()
    assert found[:, -3:].all()
    assert not found[3:-3, 3:-3].any()


def test_content_is_of_the_image_and_the_frame(noise_images: ImageList) -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    some = MarkedImages(noise_images, [3, 3, 3, 4], [None, box, (0.0, 0.0, 0.5, 0.6), box])
    other = MarkedImages(noise_images, [3], [box], MarkConfig(colour=(0, 0, 255)))
    hashes = {some.content_hash(index) for index in range(4)} | {other.content_hash(0)}
    assert len(hashes) == 5
    assert some.content_hash(0) == noise_images.content_hash(3)
    assert some.load(0).tobytes() == noise_images.load(3).tobytes()
    assert some.load(1).tobytes() != noise_images.load(3).tobytes()
    assert [some.name(0), some.name(1)] == ["3", "3 (marked)"]
    with pytest.raises(ValueError, match="row"):
        MarkedImages(noise_images, [40], [None])
