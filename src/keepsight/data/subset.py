"""Some of a data set's images as a data set of their own, without a copy. Knows nothing of why they were chosen."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import Dataset, ImageList


@final
class SubsetImages(ImageList):
    """A view of some images, in the given order.

    Args:
        images: The whole list.
        keep: Indices [M] into it.

    Raises:
        ValueError: if an index is not one of the list's.
    """

    def __init__(self, images: ImageList, keep: NDArray[np.int64]) -> None:
        if len(keep) and (keep.min() < 0 or keep.max() >= len(images)):
            raise ValueError(f"indices must be from 0 to {len(images) - 1}, got {keep.min()} to {keep.max()}")
        self._images, self._keep = images, np.array(keep, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._keep)

    def load(self, index: int) -> Image.Image:
        """See `ImageList.load`."""
        return self._images.load(int(self._keep[index]))

    def name(self, index: int) -> str:
        """The image's name in the whole list."""
        return self._images.name(int(self._keep[index]))

    def content_hash(self, index: int) -> bytes:
        """See `ImageList.content_hash`: the same as in the whole list, so that cached features are shared."""
        return self._images.content_hash(int(self._keep[index]))


def subset(dataset: Dataset, keep: NDArray[np.int64]) -> Dataset:
    """The images `keep` [M], with their labels and parts, in this order; the classes stay, even those without an image left.

    Example:
        >>> from keepsight.data.arrays import ArrayImages
        >>> images = ArrayImages(np.zeros((3, 8, 8), np.uint8))
        >>> whole = Dataset("all", images, np.array([0, 1, 0]), ("a", "b"), ("", "", "test"))
        >>> subset(whole, np.array([2, 1])).parts
        ('test', '')
    """
    return Dataset(
        name=dataset.name,
        images=SubsetImages(dataset.images, keep),
        labels=dataset.labels[keep],
        classes=dataset.classes,
        parts=tuple(dataset.parts[i] for i in keep.tolist()),
        targets=None if dataset.targets is None else dataset.targets[keep],
    )
