"""Rows of a published data set, as its own reader found them, to a `Dataset`. Knows no data set and no file format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from keepsight.core import UNLABELLED, Dataset, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.files import EXTENSIONS, FileImages
from keepsight.data.multilabel import multilabel_dataset
from keepsight.data.pixels import PixelConfig
from keepsight.data.table import table_records


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One image as a published table or list says it.

    Attributes:
        where: What messages call it, such as "Row 3 of train.csv".
        image: Its path relative to the data set's folder.
        has: Indices of the classes it has; None where they were not published.
        part: Its part of the split.
    """

    where: str
    image: str
    has: tuple[int, ...] | None
    part: Part = ""


def published_dataset(
    name: str, root: Path, rows: Sequence[PublishedRow], classes: tuple[str, ...], pixels: PixelConfig, *, several: bool
) -> Dataset:
    """The rows in their order; an image that is listed again is kept where it came first.

    Args:
        name: The data set's name.
        root: The folder that paths start from.
        rows: All images; without labels none is in val or test.
        classes: K names.
        pixels: How stored values become RGB.
        several: Whether an image may have several classes.

    Raises:
        UserError: naming the row, where one image has two labels or its file is missing.
    """
    kept: dict[str, PublishedRow] = {}
    again = 0
    for row in rows:
        first = kept.setdefault(row.image, row)
        if None not in (first.has, row.has) and first.has != row.has:
            raise UserError(
                f"{row.where} gives {row.image} other labels than {first.where[0].lower()}{first.where[1:]}: keep one of them."
            )
        again += first is not row
    if again:
        log.warning("%s: %d images are listed more than once and are kept where they come first.", name, again)
    found = list(kept.values())
    _check_there(root, found)
    images = FileImages(root, [row.image for row in found], pixels)
    parts: tuple[Part, ...] = tuple("" if row.has is None else row.part for row in found)
    targets = np.zeros((len(found), len(classes)), dtype=np.int8)
    for i, has in enumerate(row.has for row in found):
        targets[i] = UNLABELLED if has is None else np.isin(np.arange(len(classes)), has)
    if several:
        return multilabel_dataset(name, images, targets, classes, parts)
    labels = np.where(targets.max(axis=1, initial=-1) == 1, targets.argmax(axis=1), UNLABELLED).astype(np.int64)
    return Dataset(name, images, labels, classes, parts)


def _check_there(root: Path, rows: Sequence[PublishedRow]) -> None:
    there: dict[PurePath, frozenset[str]] = {}
    missing = []
    for row in rows:
        path = PurePath(row.image)
        if path.parent not in there:
            there[path.parent] = _files(root / path.parent)
        if path.name not in there[path.parent]:
            missing.append(row)
    if missing:
        raise UserError(
            f"{missing[0].where} names {root / missing[0].image}, which is not there ({len(missing)} of {len(rows)} images are "
            f"missing): unpack all images of the data set."
        )


def _files(folder: Path) -> frozenset[str]:
    """One look at a folder of thousands of images, in place of one a file."""
    if not folder.is_dir():
        return frozenset()
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file())


def image_files(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; empty where there is no such folder."""
    return sorted(name for name in _files(folder) if Path(name).suffix.lower() in EXTENSIONS and name[0] != ".")


def published_table(path: Path, columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    """("Row N of FILE", the cells of these columns) of each row of a published CSV file; other columns are ignored.

    Raises:
        UserError: A column is missing, a row is cut off, or the file cannot be read.
    """
    header, records = table_records(path)
    absent = [column for column in columns if column.lower() not in header]
    if absent:
        raise UserError(
            f"{path} has no column {absent[0]!r}: its first row is {', '.join(header)!r}, expected {', '.join(columns)}."
        )
    places = [header.index(column.lower()) for column in columns]
    rows = []
    for number, cells in records:
        if len(cells) <= max(places):
            raise UserError(
                f"Row {number} of {path} has {len(cells)} cells, but the header has {len(header)}: fetch it again."
            )
        rows.append((f"Row {number} of {path}", [cells[place].strip() for place in places]))
    return rows


def identifier(text: str, where: str) -> str:
    """A name of a file without a folder; UserError for anything else."""
    if not text or PurePath(text).name != text or "\\" in text:
        raise UserError(f"{where} has the image {text!r}: the name of one image, without a folder, was expected.")
    return text


def marked(cells: Sequence[str], names: Sequence[str], where: str) -> tuple[int, ...] | None:
    """Which of the cells, one a class, are 1; None where all are empty.

    Raises:
        UserError: A cell is neither 0 nor 1, or some but not all are empty.

    Example:
        >>> marked(["1.0", "0", "1"], ["a", "b", "c"], "Row 2"), marked(["", ""], ["a", "b"], "Row 3")
        ((0, 2), None)
    """
    if not any(cells):
        return None
    for cell, name in zip(cells, names, strict=True):
        if cell not in ("0", "1", "0.0", "1.0"):
            raise UserError(f"{where} has {cell!r} in the column {name}: 0 or 1 was expected.")
    return tuple(k for k, cell in enumerate(cells) if cell in ("1", "1.0"))
