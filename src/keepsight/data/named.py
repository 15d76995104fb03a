"""Data sets by a short name, whether a package brings them, they are fetched, or they are made. Knows no format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from keepsight.core import Dataset, UserError
from keepsight.data.demo import EMBEDDED, read_embedded
from keepsight.data.galaxy import GALAXY_FOLDERS, read_galaxy
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.stripes import COLOURS, with_stripes
from keepsight.data.torchvision_sets import read_torchvision_name

_TORCHVISION = {"mnist": "MNIST", "svhn": "SVHN", "cifar10": "CIFAR10", "cifar-10": "CIFAR10"}
_STRIPED = ("mnist-5k", "mnist")


def read_named(name: str, options: DataConfig = DEFAULTS) -> Dataset:
    """One of `NAMES`.

    Raises:
        UserError: for another name, or where its files are missing and cannot be fetched.

    Example:
        >>> read_named("digits").images.load(0).size
        (8, 8)
    """
    if name not in _READERS:
        raise UserError(f"There is no data set called {name!r}: the names are {', '.join(NAMES)}.")
    return _READERS[name](name, options)


def _embedded(name: str, _: DataConfig) -> Dataset:
    return read_embedded(name)


def _torchvision(name: str, options: DataConfig) -> Dataset:
    return replace(read_torchvision_name(_TORCHVISION[name], options), name=name)


def _striped(name: str, options: DataConfig) -> Dataset:
    base, colour, _ = name.rsplit("-", 2)
    return with_stripes(read_named(base, options), colour)


_READERS: Mapping[str, Callable[[str, DataConfig], Dataset]] = (
    dict.fromkeys(EMBEDDED, _embedded)
    | dict.fromkeys(_TORCHVISION, _torchvision)
    | dict.fromkeys(GALAXY_FOLDERS, read_galaxy)
    | {f"{base}-{colour}-stripes": _striped for base in _STRIPED for colour in COLOURS}
)

NAMES: tuple[str, ...] = tuple(_READERS)
"""The names that may stand wherever data is asked for."""
