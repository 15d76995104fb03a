"""Images with labels, whatever they came from. Knows no file format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UNLABELLED = -1
"""The label index of an image without a label."""

Part = Literal["", "train", "val", "test"]


class ImageList(ABC):
    """Images that are read one at a time, each with a name and a content hash."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """The image as RGB, upright. Raises UserError with its name if it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a user calls it: a path relative to the data, or a number."""

    @abstractmethod
    def content_hash(self, index: int) -> bytes:
        """Sha256 (32 bytes) of the stored content: the same image has the same hash wherever it lies."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named set of images with labels for all, some or none.

    Attributes:
        name: Short name for tables and default output folders.
        images: N images.
        labels: [N] int64, an index into classes or UNLABELLED.
        classes: K class names, in the order of the indices.
        parts: N entries: '' lets keepsight split; 'train', 'val' or 'test' is the user's own split, kept as it is.
    """

    name: str
    images: ImageList
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.parts):
            raise ValueError("images, labels and parts must have the same length")
