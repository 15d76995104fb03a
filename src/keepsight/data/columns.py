"""Columns of labels and splits, as tables of any kind hold them, to a `Dataset`. Knows no format and no images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight.core import UNLABELLED, Dataset, ImageList, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.labels import index_labels

IMAGE_NAMES = ("image", "img", "images", "path", "file", "filename", "file_name", "image_path", "bytes")
"""Usual names of the column that holds images or their paths, best first."""

LABEL_NAMES = ("label", "class", "labels", "target")
"""Usual names of the label column, best first."""

SPLIT_NAMES: dict[str, Part] = {
    "": "",
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""What a split column may hold, in lower case."""

_FILE_PARTS: dict[str, Part] = SPLIT_NAMES | {"training": "train", "dev": "val", "testing": "test", "t10k": "test"}


def part_of_name(name: str) -> Part:
    """The part that the name of a file, array or split begins with; '' for none.

    Example:
        >>> part_of_name("validation-00000-of-00002.parquet"), part_of_name("trains.tar")
        ('val', '')
    """
    return _FILE_PARTS.get(re.split(r"[^a-z0-9]", name.lower(), maxsplit=1)[0], "")


def pick_column(columns: Sequence[str], usual: Sequence[str], wanted: str | None, what: str, where: str) -> str:
    """The wanted column, or the first usual name that is there, in any case; UserError if there is none."""
    by_lower = {column.lower(): column for column in reversed(columns)}
    for name in usual if wanted is None else (wanted,):
        if name in columns:
            return name
        if name.lower() in by_lower:
            return by_lower[name.lower()]
    listed = ", ".join(repr(column) for column in columns[:20]) or "none"
    if wanted is not None:
        raise UserError(f"{where} has no column {wanted!r}: its columns are {listed}.")
    raise UserError(
        f"{where} has no {what} column ({', '.join(usual)}): its columns are {listed}, name the right one with {what}_column."
    )


def label_texts(values: Sequence[Any], where: str) -> list[str | None]:
    """Labels that are text, whole numbers or truth values as class names; None, '' and -1 mean unlabelled.

    Raises:
        UserError: naming the row (counted from 1), for floating-point numbers, NaN, lists and anything else.

    Example:
        >>> label_texts(["cat", 3, True, -1, None], "The table")
        ['cat', '3', 'True', None, None]
    """
    return [_label_text(value, number, where) for number, value in enumerate(values, start=1)]


def _label_text(value: Any, number: int, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        if value < UNLABELLED:
            raise UserError(
                f"Row {number} of {where} has the label {value}: numbers from 0, or -1 for no label, were expected."
            )
        return None if value == UNLABELLED else str(int(value))
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float | np.floating):
        found = "NaN" if np.isnan(value) else f"{value}, a floating-point number,"
        raise UserError(
            f"Row {number} of {where} has the label {found} where text or whole numbers were expected: convert the column, with "
            f"empty cells for images without a label."
        )
    raise UserError(
        f"Row {number} of {where} has a label of type {type(value).__name__}: one text or whole number per image was expected."
    )


def split_parts(values: Sequence[Any], where: str) -> tuple[Part, ...]:
    """A split column as parts; UserError, naming the row, for an unknown split."""
    parts: list[Part] = []
    for number, value in enumerate(values, start=1):
        text = "" if value is None else str(value).strip()
        if text.lower() not in SPLIT_NAMES:
            raise UserError(f"Row {number} of {where} has the split {text!r}: expected train, val, test or nothing.")
        parts.append(SPLIT_NAMES[text.lower()])
    return tuple(parts)


def dataset_of_columns(
    name: str,
    images: ImageList,
    labels: Sequence[Any],
    parts: Sequence[Part] | None,
    where: str,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Images with a column of labels as a data set.

    Args:
        name: The data set's name.
        images: N images.
        labels: N labels, see `label_texts`; whole numbers that index `classes`, if they are given.
        parts: N parts, or None for none. Unlabelled images of val and test are taken as unlabelled ones without a part.
        where: What messages call it.
        classes: Class names in the order of their numbers; None takes the labels themselves, in natural order.
    """
    if len(labels) != len(images):
        raise UserError(f"{where} has {len(images)} images but {len(labels)} labels: one label an image was expected.")
    if classes is None:
        labels_N, names = index_labels(label_texts(labels, where), where)
    else:
        labels_N, names = _indices(labels, len(classes), where), tuple(classes)
    given: Sequence[Part] = [""] * len(images) if parts is None else parts
    kept: list[Part] = [
        "" if n == UNLABELLED and p in ("val", "test") else p for n, p in zip(labels_N, given, strict=True)
    ]
    if moved := sum(p != k for p, k in zip(given, kept, strict=True)):
        log.warning("%s: %d images of val or test have no label and are taken as unlabelled ones.", where, moved)
    return Dataset(name=name, images=images, labels=labels_N, classes=names, parts=tuple(kept))


def _indices(labels: Sequence[Any], count: int, where: str) -> NDArray[np.int64]:
    indices = np.full(len(labels), UNLABELLED, dtype=np.int64)
    for number, value in enumerate(labels, start=1):
        if value is None:
            continue
        if not isinstance(value, int | np.integer) or not UNLABELLED <= value < count:
            raise UserError(
                f"Row {number} of {where} has the label {value!r}, but there are {count} named classes: a number from 0 to "
                f"{count - 1}, or -1 for no label, was expected."
            )
        indices[number - 1] = value
    return indices
