"""Several lists of images as one. Knows nothing of labels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import final

from PIL import Image

from keepsight.core import ImageList


@final
class JoinedImages(ImageList):
    """Lists behind each other, in the order of the mapping; an image is called by its list's name, a slash and its own name.

    Example:
        >>> import numpy as np
        >>> from keepsight.data.arrays import ArrayImages
        >>> two, one = ArrayImages(np.zeros((2, 4, 4), np.uint8)), ArrayImages(np.ones((1, 4, 4), np.uint8))
        >>> JoinedImages({"a": two, "b": one}).name(2)
        'b/0'
    """

    def __init__(self, lists: Mapping[str, ImageList]) -> None:
        self._names, self._lists = tuple(lists), tuple(lists.values())
        self._ends = list(accumulate(len(images) for images in self._lists))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def load(self, index: int) -> Image.Image:
        """See `ImageList.load`."""
        which, place = self._place(index)
        return self._lists[which].load(place)

    def name(self, index: int) -> str:
        """The list's name and the image's own."""
        which, place = self._place(index)
        return f"{self._names[which]}/{self._lists[which].name(place)}"

    def content_hash(self, index: int) -> bytes:
        """See `ImageList.content_hash`: the same as in its own list, so that cached features are shared."""
        which, place = self._place(index)
        return self._lists[which].content_hash(place)

    def _place(self, index: int) -> tuple[int, int]:
        which = bisect_right(self._ends, index)
        return which, index - (self._ends[which - 1] if which else 0)
