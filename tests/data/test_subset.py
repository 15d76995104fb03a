"""A subset is a view: the right images under their own names and hashes."""

import numpy as np
import pytest

from keepsight.core import Dataset
from keepsight.data.arrays import ArrayImages
from keepsight.data.subset import SubsetImages, subset


def test_subset_keeps_images_labels_names_and_hashes_together() -> None:
    pixels = np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8)
    whole = Dataset(
        "d", ArrayImages(pixels), np.array([0, 1, 2, 1, -1]), ("a", "b", "c"), ("train", "", "val", "test", "")
    )
    part = subset(whole, np.array([4, 1, 3]))
    assert part.labels.tolist() == [-1, 1, 1]
    assert part.parts == ("", "", "test")
    assert part.classes == ("a", "b", "c")
    for row, i in enumerate([4, 1, 3]):
        assert part.images.name(row) == str(i)
        assert part.images.content_hash(row) == whole.images.content_hash(i)
        assert np.array_equal(np.asarray(part.images.load(row))[:, :, 0], pixels[i])


def test_an_index_outside_is_refused() -> None:
    images = ArrayImages(np.zeros((3, 4, 4), np.uint8))
    for keep in ([3], [-1]):
        with pytest.raises(ValueError, match="from 0 to 2"):
            SubsetImages(images, np.array(keep))
    assert len(SubsetImages(images, np.array([], np.int64))) == 0
