"""Reads every image of a list in parallel, and says which cannot be read. Knows no labels and no file format.

Threads of one process: Pillow gives up the interpreter lock while it decodes. Images are read block by block, so that at most
as many are decoded in memory as there are threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from keepsight.core import Config, ImageList, UserError
from keepsight.core.progress import Track

T = TypeVar("T")

_BLOCK = 256

BadKind = Literal["missing", "no permission", "no image", "oversized", "unsupported", "damaged"]


class BadImage(Config):
    """An image that cannot be read.

    Attributes:
        index: Its index in the data set.
        name: What the user calls it.
        kind: ``missing``, ``no permission``, ``no image`` (other content, or empty), ``oversized`` (more pixels than Pillow
            allows, the sign of a decompression bomb), ``unsupported`` (pixels without a defined range) or ``damaged``
            (truncated, or anything else).
        reason: The whole sentence.
    """

    index: int
    name: str
    kind: BadKind
    reason: str


def find_unreadable(
    images: ImageList, indices: NDArray[np.int64] | None = None, workers: int | None = None
) -> list[BadImage]:
    """The images that cannot be decoded, in the order of the indices (all images by default).

    Each image is decoded once and nothing else is done with it: seconds for thousands of small images, and what costs least
    before hours of training.

    Args:
        images: The images.
        indices: Which of them.
        workers: Threads; one a processor by default.
    """
    wanted = np.arange(len(images)) if indices is None else indices
    return [bad for _, bad in read_all(images, wanted, lambda *_: None, workers) if bad is not None]


def read_all(
    images: ImageList,
    indices: NDArray[np.int64],
    work: Callable[[int, Image.Image], T],
    workers: int | None = None,
) -> Iterator[tuple[int, T | BadImage]]:
    """(index, `work` of the index and the RGB image, or why it cannot be read), in the order of the indices.

    A UserError of `work` makes the image a bad one too. Progress is shown.
    """

    def read(index: int) -> T | BadImage:
        try:
            return work(index, images.load(index))
        except UserError as error:
            return BadImage(index=index, name=images.name(index), kind=_kind(error), reason=str(error))

    threads = workers or os.cpu_count() or 1
    with Track("reading", len(indices), "images") as track, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(indices), _BLOCK):
            block = indices[start : start + _BLOCK].tolist()
            for index, result in zip(block, pool.map(read, block), strict=True):
                yield index, result
                track.advance()


def _kind(error: UserError) -> BadKind:
    """Sources raise UserError from the exception that was met."""
    match error.__cause__:
        case FileNotFoundError():
            return "missing"
        case PermissionError():
            return "no permission"
        case UnidentifiedImageError():
            return "no image"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return "oversized"
        case ValueError():
            return "unsupported"
        case _:
            return "damaged"
