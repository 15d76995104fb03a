"""Hugging Face data sets: by name on the hub, as a saved folder, or as an object. Knows nothing of splitting.

Features Image and ClassLabel (or text, or whole numbers). Splits whose names begin with train, validation or test are those parts;
`unsupervised`, `unlabelled` and `unlabeled` bring unlabelled images; others are left out aloud.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.columns import (
    IMAGE_NAMES,
    LABEL_NAMES,
    dataset_of_columns,
    part_of_name,
    pick_column,
    split_parts,
)
from keepsight.data.files import StoredImages, unreadable
from keepsight.data.options import DEFAULTS, DataConfig

_UNLABELLED = ("unsupervised", "unlabelled", "unlabeled")


def is_hub_object(source: Any) -> bool:
    """Whether it is a `datasets.Dataset` or `DatasetDict`; the package is not imported for the question."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(source, datasets.Dataset | datasets.DatasetDict)


def is_saved_folder(folder: Path) -> bool:
    """Whether `save_to_disk` of a data set wrote it."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_hub_name(name: str, options: DataConfig = DEFAULTS) -> Dataset:
    """ORG/NAME on the Hugging Face hub, fetched into its own cache at the first use.

    Raises:
        UserError: if the package is missing, the data set is neither in the cache nor to be fetched, or is not of images and
    labels."""
    datasets = _package()
    if not name.strip() or name.startswith(("/", ".")):
        raise UserError(
            f"'hf:{name}' names no data set of the hub: write hf:ORG/NAME, or give a saved folder without 'hf:'."
        )
    log.info("reading %s from the Hugging Face hub or its cache", name)
    try:
        found = datasets.load_dataset(name, options.hub_config, revision=options.hub_revision)
    except Exception as error:  # its errors are of many kinds, several of them the network's
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise UserError(
            f"The data set hf:{name} cannot be read ({type(error).__name__}: {reason}): check the name and the network "
            f"connection, or fetch it elsewhere with save_to_disk and give that folder."
        ) from error
    return read_hub_object(found, options, name=name.rpartition("/")[2])


def read_saved_folder(folder: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """What `save_to_disk` wrote; memory-mapped.

    Raises:
        UserError: if the package is missing, the folder is damaged, or it is not of images and labels.
    """
    datasets = _package()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # damage raises nearly anything
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise UserError(f"{folder} is a damaged folder of the package datasets ({reason}): save it again.") from error
    return read_hub_object(found, options, name=folder.resolve().name)


def read_hub_object(source: Any, options: DataConfig = DEFAULTS, *, name: str = "hub") -> Dataset:
    """A `datasets.Dataset` (keepsight splits it) or `DatasetDict` (its splits are kept) as a data set.

    Raises:
        UserError: if there is no image or label column, or the splits have different classes.
    """
    splits: Mapping[str, Any] = source if isinstance(source, dict) else {"": source}
    kept: list[tuple[str, Any, Part]] = []
    for split, rows in splits.items():
        part = part_of_name(split)
        if split and not part and split.lower() not in _UNLABELLED:
            log.warning(
                "%s: the split %r (%d images) was left out: rename it to train, validation or test.",
                name,
                split,
                len(rows),
            )
        else:
            kept.append((split, rows, part))
    if not kept:
        raise UserError(
            f"The data set {name} has the splits {', '.join(splits)}: at least one called train was expected."
        )
    reference = next((rows for split, rows, _ in kept if split.lower() not in _UNLABELLED), kept[0][1])
    where = f"The data set {name}"
    image = pick_column(reference.column_names, IMAGE_NAMES, options.image_column, "image", where)
    label = pick_column(reference.column_names, LABEL_NAMES, options.label_column, "label", where)
    classes = _classes(reference, label)
    labels: list[Any] = []
    parts: list[Part] = []
    columns: list[Any] = []
    for split, rows, part in kept:
        without = split.lower() in _UNLABELLED
        if not without and _classes(rows, label) != classes:
            raise UserError(
                f"{where} has other classes in the split {split!r} than in {kept[0][0]!r}: give all splits the same feature."
            )
        labels += [None] * len(rows) if without else list(rows.with_format(None)[label])
        parts += _parts(rows, options, part, where)
        columns.append(_encoded(rows, image, where))
    stored = _Rows([split for split, _, _ in kept], columns)
    return dataset_of_columns(
        name, StoredImages(len(labels), stored.read, stored.name, options.pixels), labels, parts, where, classes
    )


def _parts(rows: Any, options: DataConfig, part: Part, where: str) -> Sequence[Part]:
    if options.split_column is None:
        return [part] * len(rows)
    column = pick_column(rows.column_names, (), options.split_column, "split", where)
    return split_parts(list(rows.with_format(None)[column]), where)


def _classes(rows: Any, label: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel, or None for another feature."""
    feature = rows.features.get(label)
    names = feature.names if isinstance(feature, _package().ClassLabel) else None
    return None if names is None else tuple(names)


def _encoded(rows: Any, image: str, where: str) -> Any:
    """Only the images, as stored bytes."""
    datasets = _package()
    feature = rows.features.get(image)
    if not isinstance(feature, datasets.Image):
        raise UserError(
            f"{where} has a column {image!r} of {type(feature).__name__}, not Image: name the right one with image_column, or "
            f"convert it with cast_column({image!r}, datasets.Image())."
        )
    return rows.with_format(None).select_columns([image]).cast_column(image, datasets.Image(decode=False))


class _Rows:
    """The stored bytes of several splits, one after another."""

    def __init__(self, splits: Sequence[str], columns: Sequence[Any]) -> None:
        self._rows = [
            (split, column, row) for split, column in zip(splits, columns, strict=True) for row in range(len(column))
        ]

    def name(self, index: int) -> str:
        """SPLIT#ROW, rows counted from 1."""
        split, _, row = self._rows[index]
        return f"{split or 'row'}#{row + 1}"

    def read(self, index: int) -> bytes:
        """The bytes of the file, from the data set or from the file that it names."""
        _, column, row = self._rows[index]
        (value,) = column[row].values()
        if value is None or (value.get("bytes") is None and not value.get("path")):
            raise unreadable(self.name(index), "its cell is empty: filter it out")
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        path = Path(value["path"])
        if ".." in path.parts or not path.is_absolute():
            raise unreadable(self.name(index), f"its path {value['path']!r} is not absolute: store the bytes")
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(self.name(index), f"{path} says '{error.strerror}'") from error


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "Hugging Face data sets need the package datasets: install it with pip install 'keepsight[datasets]'."
        ) from error
    return datasets
