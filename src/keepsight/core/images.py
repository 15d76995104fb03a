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
        targets: None where an image has one class. In multi-label data [N, K] int8: 1 for each class that an image has, 0 for the
            others, -1 throughout an image without labels. `labels` then says no more than that: 0 with labels, UNLABELLED without.
    """

    name: str
    images: ImageList
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    targets: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.parts):
            raise ValueError("images, labels and parts must have the same length")
        if self.targets is None:
            return
        known_N = (self.labels != UNLABELLED)[:, None]
        if self.targets.shape != (len(self.images), len(self.classes)):
            raise ValueError(f"targets must be [images, classes], got {self.targets.shape}")
        if not np.where(known_N, np.isin(self.targets, (0, 1)), self.targets == UNLABELLED).all() or self.labels.max(
            initial=0
        ):
            raise ValueError("targets are 0 or 1 where labels are 0, and -1 throughout where labels are -1")

    @property
    def truth(self) -> NDArray[np.int8] | NDArray[np.int64]:
        """What a method learns from: class indices [N], or the targets [N, K] of multi-label data."""
        return self.labels if self.targets is None else self.targets
