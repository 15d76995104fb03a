"""What several tests of recipes tune on."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.core import Dataset
from keepsight.data.arrays import ArrayImages


@pytest.fixture(scope="module")
def blobs() -> Dataset:
    """Two classes: the bright half is above or below."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = rng.integers(0, 90, (60, 28, 28))
    pixels[labels == 0, :14] += 120
    pixels[labels == 1, 14:] += 120
    return Dataset("blobs", ArrayImages(pixels.astype(np.uint8)), labels.astype(np.int64), ("up", "down"), ("",) * 60)
