"""What is in memory already, with its labels: arrays, and pandas data frames. pandas is never imported here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.arrays import ArrayImages, PillowImages
from keepsight.data.columns import IMAGE_NAMES, LABEL_NAMES, dataset_of_columns, label_texts, pick_column, split_parts
from keepsight.data.files import StoredImages
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.parquet import stored_bytes
from keepsight.data.pixels import AS_STORED, PixelConfig
from keepsight.data.table import Row, dataset_of_paths


def dataset_from_arrays(
    values: Any,
    labels: Any,
    *,
    name: str = "arrays",
    parts: Sequence[Part] | None = None,
    classes: Sequence[str] | None = None,
    pixels: PixelConfig = AS_STORED,
) -> Dataset:
    """Images and labels in memory as a data set.

    Args:
        values: One array [N, H, W] or [N, H, W, C] (see `ArrayImages`), or a list of arrays or Pillow images of any size.
        labels: N labels: text, whole numbers (-1 for none), truth values; a list or an array [N] or [N, 1].
        name: The data set's name.
        parts: N parts ('', 'train', 'val' or 'test'), or None.
        classes: Names of the classes that whole-number labels stand for.
        pixels: How stored values become RGB.

    Raises:
        UserError: for other types, shapes and labels, or different lengths.

    Example:
        >>> data = dataset_from_arrays(np.zeros((3, 8, 8), np.uint8), ["a", "b", None])
        >>> data.classes, data.labels.tolist()
        (('a', 'b'), [0, 1, -1])
    """
    where = f"The data set {name!r}"
    images: ArrayImages | PillowImages
    if isinstance(values, np.ndarray):
        images = ArrayImages(values, pixels)
    elif isinstance(values, list | tuple) and all(isinstance(value, Image.Image) for value in values):
        images = PillowImages(values, pixels)
    elif isinstance(values, list | tuple) and all(isinstance(value, np.ndarray) for value in values):
        images = PillowImages([ArrayImages(value[None], pixels).load(0) for value in values])
    else:
        raise UserError(
            f"{where} has images of type {type(values).__name__}: an array, or a list of arrays or Pillow images was expected."
        )
    if parts is not None and (len(parts) != len(images) or not set(parts) <= {"", "train", "val", "test"}):
        raise UserError(
            f"{where} has {len(images)} images but {len(parts)} parts, or others than '', 'train', 'val' and 'test'."
        )
    return dataset_of_columns(name, images, label_list(labels, where), parts, where, classes)


def label_list(labels: Any, where: str) -> list[Any]:
    """Labels as a list; an array must be [N] or [N, 1].

    Raises:
        UserError: for more than one label an image.
    """
    array = labels if isinstance(labels, np.ndarray) else None
    if array is None:
        return list(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(f"{where} has labels of shape {list(array.shape)}: one label an image, [N], was expected.")
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in array.tolist()]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} has labels that are not UTF-8 text: write them again.") from error


def dataset_from_frame(
    frame: Any, options: DataConfig = DEFAULTS, *, root: str | Path | None = None, name: str = "frame"
) -> Dataset:
    """A pandas data frame with a column of images (paths, bytes, {bytes, path}, Pillow images or arrays) and one of labels.

    Args:
        frame: The data frame; missing labels (None, NaN in a column of text, pandas.NA) are unlabelled images.
        options: Columns and pixels.
        root: The folder that relative paths start from; else `options.data_root`, else the working directory.
        name: The data set's name.

    Raises:
        UserError: as `read_parquet` does; rows are counted from 1.
    """
    where = f"The data frame {name!r}"
    columns = [str(column) for column in frame.columns]
    image = pick_column(columns, IMAGE_NAMES, options.image_column, "image", where)
    label = pick_column(columns, LABEL_NAMES, options.label_column, "label", where)
    split = (
        pick_column(columns, ("split",), options.split_column, "split", where)
        if options.split_column or "split" in columns
        else None
    )
    for column in (image, label, split):
        if column is not None and columns.count(column) > 1:
            raise UserError(f"{where} has {columns.count(column)} columns called {column!r}: keep one.")
    cells = _cells(frame, columns.index(image))
    labels = _cells(frame, columns.index(label))
    splits = [None] * len(cells) if split is None else _cells(frame, columns.index(split))
    if not cells:
        raise UserError(f"{where} has no rows: one row an image was expected.")
    folder = Path(root or options.data_root or ".")
    if all(isinstance(cell, str | Path) for cell in cells):
        rows = [
            Row(number, str(cell), text, "" if part is None else str(part))
            for number, (cell, text, part) in enumerate(
                zip(cells, label_texts(labels, where), splits, strict=True), start=1
            )
        ]
        return dataset_of_paths(rows, where, name, folder, options.pixels)
    parts = split_parts(splits, where)
    if all(isinstance(cell, bytes | bytearray | memoryview | dict) for cell in cells):
        images = StoredImages(
            len(cells),
            lambda i: stored_bytes(cells[i], folder, f"row {i + 1}"),
            lambda i: f"row {i + 1}",
            options.pixels,
        )
        return dataset_of_columns(name, images, labels, parts, where)
    if all(isinstance(cell, np.ndarray) for cell in cells) or all(isinstance(cell, Image.Image) for cell in cells):
        return dataset_from_arrays(cells, labels, name=name, parts=parts, pixels=options.pixels)
    kinds = ", ".join(sorted({type(cell).__name__ for cell in cells})[:4])
    raise UserError(
        f"The column {image!r} of {where[0].lower()}{where[1:]} holds {kinds}: one kind of paths, bytes, Pillow images or "
        f"arrays was expected, name the right one with image_column."
    )


def _cells(frame: Any, place: int) -> list[Any]:
    """A column as Python values; missing ones as None, except in a column of floating-point numbers."""
    column = frame.iloc[:, place]
    if getattr(column.dtype, "kind", "O") == "f":
        return list(column.tolist())
    missing = column.isna().tolist()
    return [None if gone else value for gone, value in zip(missing, column.tolist(), strict=True)]
