"""The embedded data sets: real images out of packages, by name. Knows nothing of how packages are fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from keepsight import assets
from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.arrays import ArrayImages
from keepsight.data.idx import read_idx
from keepsight.data.stamps import read_stamps

_FASHION_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple(str(digit) for digit in range(10))


def read_embedded(name: str) -> Dataset:
    """One of `EMBEDDED`.

    Raises:
        UserError: for another name, or where the package that holds the images is missing.
    """
    if name not in _READERS:
        raise UserError(
            f"There is no embedded data set {name!r}: the embedded data sets are {', '.join(sorted(_READERS))}."
        )
    return _READERS[name]()


def _mnist_5k() -> Dataset:
    pixels_NHW, labels_N = assets.load_mnist_5k()
    return _dataset("mnist-5k", pixels_NHW, labels_N, _DIGITS)


def _digits() -> Dataset:
    digits = load_digits()
    pixels_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _dataset("digits", pixels_NHW, digits.target, _DIGITS)


def _fashion_mnist() -> Dataset:
    if not _FASHION_DIRECTORY.is_dir():
        raise UserError(
            f"fashion-mnist is read from Debian's package dataset-fashion-mnist, which is not installed "
            f"({_FASHION_DIRECTORY} is missing): run 'apt install dataset-fashion-mnist' or choose another data set."
        )
    parts: tuple[tuple[str, Part], ...] = (("train", "train"), ("t10k", "test"))
    pixels = [read_idx(_FASHION_DIRECTORY / f"{file}-images-idx3-ubyte.gz") for file, _ in parts]
    labels = [read_idx(_FASHION_DIRECTORY / f"{file}-labels-idx1-ubyte.gz") for file, _ in parts]
    part_N: tuple[Part, ...] = tuple(part for (_, part), block in zip(parts, labels, strict=True) for _ in block)
    return _dataset("fashion-mnist", np.concatenate(pixels), np.concatenate(labels), _FASHION_CLASSES, part_N)


_READERS: dict[str, Callable[[], Dataset]] = {
    "demo": _mnist_5k,
    "mnist-5k": _mnist_5k,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "stamps": read_stamps,
}

EMBEDDED: tuple[str, ...] = tuple(_READERS)
"""The names of the embedded data sets; 'demo' is 'mnist-5k'."""


def _dataset(
    name: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    parts: tuple[Part, ...] | None = None,
) -> Dataset:
    parts = parts or tuple("" for _ in labels)
    return Dataset(name, ArrayImages(pixels), np.asarray(labels, dtype=np.int64), classes, parts)
