"""Images of one word each with what is written there. Knows no file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keepsight.core import ImageList

WordPart = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class WordSet:
    """A named set of images of words.

    Attributes:
        name: Short name for tables.
        images: N images, each of one word.
        texts: What is written there, as the source has it.
        parts: Of each, whether it is learnt from or measured.
    """

    name: str
    images: ImageList
    texts: tuple[str, ...]
    parts: tuple[WordPart, ...]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.texts) == len(self.parts):
            raise ValueError("images, texts and parts must have the same length")

    def of(self, part: WordPart) -> NDArray[np.int64]:
        """Indices of the images of a part, in order."""
        return np.flatnonzero(np.array([each == part for each in self.parts], dtype=bool))
