from __future__ import annotations

import numpy as np
import pytest

from keepsight.data.arrays import ArrayImages
from keepsight.data.joined import JoinedImages


def test_every_image_is_that_of_its_own_list() -> None:
    pixels = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    parts = {"a": ArrayImages(pixels[:2]), "none": ArrayImages(pixels[:0]), "b": ArrayImages(pixels[2:])}
    joined = JoinedImages(parts)
    assert len(joined) == 5
    assert [joined.name(i) for i in range(5)] == ["a/0", "a/1", "b/0", "b/1", "b/2"]
    assert [joined.load(i).getpixel((0, 0))[0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert [joined.content_hash(i) for i in range(2, 5)] == [parts["b"].content_hash(i) for i in range(3)]
    with pytest.raises(IndexError):
        joined.load(5)
    assert len(JoinedImages({})) == 0
