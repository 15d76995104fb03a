"""From label texts to class indices. Knows nothing of where the labels came from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from keepsight.core import UNLABELLED, UserError


def natural_key(text: str) -> tuple[tuple[int | str, ...], str]:
    """A sorting key that orders numbers inside text by value.

    Example:
        >>> sorted(["class10", "class9", "b"], key=natural_key)
        ['b', 'class9', 'class10']
    """
    parts = re.split(r"([0-9]+)", text.casefold())  # odd places are the numbers, so that like is compared with like
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), text


def check_class_names(classes: Iterable[str], where: str) -> None:
    """Raises UserError for an empty name, or two names that differ in case (or Unicode form) only."""
    seen: dict[str, str] = {}
    for name in classes:
        if not name.strip():
            raise UserError(f"{where} has a class with an empty name: every class needs a name.")
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise UserError(
                f"{where} has the classes {seen[folded]!r} and {name!r}, which differ in upper and lower case only: "
                f"give them one spelling if they are the same class, else two clearly different names."
            )
        seen[folded] = name


def index_labels(names: Sequence[str | None], where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class names (None: unlabelled) as indices [N], and the classes in natural order, checked by `check_class_names`.

    Example:
        >>> index_labels(["b", None, "a"], "The data")
        (array([ 1, -1,  0]), ('a', 'b'))
    """
    classes = tuple(sorted({name for name in names if name is not None}, key=natural_key))
    check_class_names(classes, where)
    index = {name: i for i, name in enumerate(classes)}
    labels = [UNLABELLED if name is None else index[name] for name in names]
    return np.array(labels, dtype=np.int64), classes
