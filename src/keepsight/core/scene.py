"""Images with marked objects and captions: what is stored of them, what a task head learns from, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core.images import ImageList

Task = Literal["detection", "segmentation", "captioning"]
TASKS: tuple[Task, ...] = ("detection", "segmentation", "captioning")


@dataclass(frozen=True, slots=True)
class Rle:
    """A mask [h, w] in COCO's compressed run-length encoding, column by column."""

    size: tuple[int, int]
    counts: bytes


@dataclass(frozen=True, slots=True)
class Objects:
    """The marked objects of one stored image, in its own pixels.

    Attributes:
        boxes: [N, 4] float32: left, top, right, bottom, px.
        classes: [N] int64, indices into the data set's classes.
        crowd: [N] bool: a region of many objects, which neither trains nor counts as a miss.
        masks: N masks of the image's size; None for an object without one.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: tuple[Rle | None, ...]

    def __post_init__(self) -> None:
        n = len(self.masks)
        if self.boxes.shape != (n, 4) or self.classes.shape != (n,) or self.crowd.shape != (n,):
            raise ValueError("boxes [N, 4], classes [N], crowd [N] and masks must be of the same objects")


@dataclass(frozen=True, slots=True)
class SceneDataset:
    """A named set of images with marked objects, captions, or both.

    Attributes:
        name: Short name for tables and default output folders.
        images: N images, upright; `Objects` are in the pixels of what `images.load` gives.
        sizes: [N, 2] int64: height and width of each, px.
        objects: Of each image; none is a true statement about the image, where the set has objects at all.
        captions: Of each image; may be empty.
        classes: K class names, in the order of the indices.
        category_ids: [K] the ids of the classes in COCO's files.
        image_ids: [N] the ids of the images there.
        parts: N names of splits: 'train', 'val', 'test-seen', 'test-unseen' or the user's own.
        has_objects: Whether objects were marked.
    """

    name: str
    images: ImageList
    sizes: NDArray[np.int64]
    objects: tuple[Objects, ...]
    captions: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    parts: tuple[str, ...]
    has_objects: bool = True

    def __post_init__(self) -> None:
        n = len(self.images)
        if not all(
            len(each) == n for each in (self.sizes, self.objects, self.captions, self.image_ids, self.parts)
        ) or len(self.category_ids) != len(self.classes):
            raise ValueError("images, sizes, objects, captions, ids and parts must have the same length")

    def of(self, part: str) -> NDArray[np.int64]:
        """Indices of the images of a split, in order."""
        return np.flatnonzero(np.array([each == part for each in self.parts], dtype=bool))


def _nothing(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Target:
    """What a task head learns from one image, after the transforms. Crowd regions are not in it.

    Attributes:
        boxes: [N, 4] float32: centre x, centre y, width, height, in units of the input's side.
        classes: [N] int64.
        masks: [N, S, S] bool at the input's size; [0, 0, 0] where masks are not asked for.
        words: [C, T] int64: captions as word indices, begun and ended, filled up with 0; [0, 0] where not asked for.
        draw: A number of the step, drawn from the run's seed, and the image's place in the global batch. What a head draws at
            random (noise, points, one of several captions) is a function of them, whichever process has the image; None outside of
            a run.
    """

    boxes: Tensor = field(default_factory=lambda: _nothing(0, 4))
    classes: Tensor = field(default_factory=lambda: _nothing(0, dtype=torch.int64))
    masks: Tensor = field(default_factory=lambda: _nothing(0, 0, 0, dtype=torch.bool))
    words: Tensor = field(default_factory=lambda: _nothing(0, 0, dtype=torch.int64))
    draw: tuple[int, int] | None = None

    def to(self, device: torch.device) -> Target:
        """The same on a device."""
        boxes, classes, masks, words = (each.to(device) for each in (self.boxes, self.classes, self.masks, self.words))
        return Target(boxes, classes, masks, words, self.draw)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a task head says of one image, best first.

    Attributes:
        boxes: [N, 4] float32: left, top, right, bottom, in units of the input's side, within [0, 1].
        classes: [N] int64.
        scores: [N] in [0, 1].
        masks: [N, S, S] bool at the input's size; [0, 0, 0] from a head that gives none.
        words: [T] int64: the generated caption, without begin and end; [0] from a head that gives none.
    """

    boxes: Tensor = field(default_factory=lambda: _nothing(0, 4))
    classes: Tensor = field(default_factory=lambda: _nothing(0, dtype=torch.int64))
    scores: Tensor = field(default_factory=lambda: _nothing(0))
    masks: Tensor = field(default_factory=lambda: _nothing(0, 0, 0, dtype=torch.bool))
    words: Tensor = field(default_factory=lambda: _nothing(0, dtype=torch.int64))
