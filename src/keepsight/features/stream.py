"""Preprocessed batches of any number of images, one ahead of the model; memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import ImageList, Preprocessing, UserError
from keepsight.core.progress import log
from keepsight.data.transforms import load_batch

Batch = tuple[NDArray[np.int64], Tensor]


def stream_batches(
    images: ImageList,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    batch_size: int = 64,
    skip_bad: bool = False,
) -> Iterator[Batch]:
    """(indices [B], images [B, 3, S, S]) in order; the next batch is decoded while the current one is used.

    With `skip_bad`, an image that cannot be read is logged and left out, so that a batch may be shorter or missing.

    Raises:
        UserError: An image cannot be read, without `skip_bad`.
    """

    def load(start: int) -> Batch:
        return _load(images, indices[start : start + batch_size], preprocessing, skip_bad)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(load, 0)
        for start in range(0, len(indices), batch_size):
            batch = following.result()
            if start + batch_size < len(indices):
                following = pool.submit(load, start + batch_size)
            if len(batch[0]):
                yield batch


def _load(images: ImageList, chosen: NDArray[np.int64], preprocessing: Preprocessing, skip_bad: bool) -> Batch:
    try:
        return chosen, load_batch(images, chosen, preprocessing)
    except UserError:
        if not skip_bad:
            raise
    good = np.array([i for i in chosen.tolist() if _readable(images, i)], dtype=np.int64)
    return good, load_batch(images, good, preprocessing)


def _readable(images: ImageList, index: int) -> bool:
    try:
        images.load(index)
    except UserError as error:
        log.warning("left out: %s", error)
        return False
    return True
