"""Parquet files, one or a folder of them, with image bytes or paths. Knows nothing of splitting.

Columns as in `columns`. The image column holds bytes, or the Hugging Face hub's {bytes, path}, or paths as in a CSV file. A file or
folder whose name begins with train, validation or test gives its images that part, unless there is a split column. Only labels are
held in memory: images are read by row groups, of which a few are kept (`KEPT_BYTES`).
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.columns import (
    IMAGE_NAMES,
    LABEL_NAMES,
    dataset_of_columns,
    label_texts,
    part_of_name,
    pick_column,
    split_parts,
)
from keepsight.data.files import StoredImages, unreadable
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.table import Row, dataset_of_paths

KEPT_BYTES = 128 * 2**20
"""Row groups are kept in memory up to this size (the newest one always), so that neighbours are not read twice."""


@dataclass(frozen=True, slots=True)
class _File:
    """One Parquet file: where, its rows per row group, its schema (pyarrow's)."""

    path: Path
    name: str
    group_rows: tuple[int, ...]
    schema: Any


def read_parquet(path: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """A .parquet file, or all of those in a folder (two levels deep), as a data set in the order of the names and rows.

    Raises:
        UserError: if pyarrow is missing, a file is damaged or lacks a column, or the labels are not as `label_texts` says.
    """
    files = _files(path)
    columns = [str(name) for name in files[0].schema.names]
    where = str(path)
    image = pick_column(columns, IMAGE_NAMES, options.image_column, "image", where)
    label = pick_column(columns, LABEL_NAMES, options.label_column, "label", where)
    split = pick_column(columns, (), options.split_column, "split", where) if options.split_column else None
    split = split or next((name for name in columns if name.lower() == "split"), None)
    labels: list[Any] = []
    parts: list[Part] = []
    for file in files:
        found = _read_columns(file, [label] if split is None else [label, split])
        labels += found[label]
        rows = sum(file.group_rows)
        parts += (
            split_parts(found[split], str(file.path)) if split is not None else [part_of_name(_part_text(file))] * rows
        )
    if not labels:
        raise UserError(f"{where} has columns but no rows: one row an image was expected.")
    name = path.resolve().stem or "data"
    kind = _image_kind(files, image)
    if kind == "path":
        paths = [value for file in files for value in _read_columns(file, [image])[image]]
        rows_of_paths = [
            Row(number, value or "", text, part)
            for number, (value, text, part) in enumerate(
                zip(paths, _named(labels, class_names(files[0].schema, label), where), parts, strict=True), start=1
            )
        ]
        root = path if path.is_dir() else path.parent
        return dataset_of_paths(rows_of_paths, where, name, root, options.pixels)
    rows_of_groups = _RowGroups(files, image)
    images = StoredImages(len(labels), rows_of_groups.read, rows_of_groups.name, options.pixels)
    return dataset_of_columns(name, images, labels, parts, where, class_names(files[0].schema, label))


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's metadata give for a column, or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        if features[column]["_type"] == "ClassLabel":
            return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _named(labels: Sequence[Any], classes: tuple[str, ...] | None, where: str) -> list[str | None]:
    if classes is None:
        return label_texts(labels, where)
    return [None if n is None or n < 0 else classes[n] if n < len(classes) else str(n) for n in labels]


def _part_text(file: _File) -> str:
    """What says the part of a file: its own name, or the folder it lies in."""
    own = PurePosixPath(file.name)
    return own.name if part_of_name(own.name) else own.parent.name


def _files(path: Path) -> list[_File]:
    import pyarrow.parquet

    paths = parquet_files(path) if path.is_dir() else [path]
    files = []
    for one in paths:
        try:
            with pyarrow.parquet.ParquetFile(one) as file:
                rows = tuple(file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups))
                name = one.relative_to(path).as_posix() if path.is_dir() else one.name
                files.append(_File(one, name, rows, file.schema_arrow))
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(one, error) from error
    return files


def parquet_files(folder: Path) -> list[Path]:
    """The .parquet files directly in a folder, or up to two folders deeper; hidden ones left out."""
    found = (path for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet") for path in folder.glob(pattern))
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _read_columns(file: _File, columns: list[str]) -> dict[str, list[Any]]:
    import pyarrow.parquet

    missing = [column for column in columns if column not in file.schema.names]
    if missing:
        raise UserError(
            f"{file.path} has no column {missing[0]!r}, which other files of the folder have: give all the same columns."
        )
    try:
        with pyarrow.parquet.ParquetFile(file.path) as opened:
            table = opened.read(columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(file.path, error) from error
    return {column: table.column(column).to_pylist() for column in columns}


def _image_kind(files: Sequence[_File], column: str) -> str:
    """'path' or 'bytes'."""
    from pyarrow import types

    kinds = set()
    for file in files:
        if column not in file.schema.names:
            raise UserError(
                f"{file.path} has no column {column!r}, which other files of the folder have: give all the same columns."
            )
        kind = file.schema.field(column).type
        if types.is_string(kind) or types.is_large_string(kind):
            kinds.add("path")
        elif (
            types.is_binary(kind)
            or types.is_large_binary(kind)
            or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        ):
            kinds.add("bytes")
        else:
            raise UserError(
                f"The column {column!r} of {file.path} is of type {kind}: image bytes, {{bytes, path}} or paths were expected, "
                f"name the right one with image_column."
            )
    if len(kinds) > 1:
        raise UserError(
            f"The column {column!r} holds bytes in some files and paths in others: give all files the same columns."
        )
    return kinds.pop()


class _RowGroups:
    """Random access to one column of many files by row groups; safe under threads."""

    def __init__(self, files: Sequence[_File], column: str) -> None:
        self._column = column
        self._groups: list[tuple[_File, int, int]] = []  # the file, the group's number, the file's rows before it
        self._starts: list[int] = []
        start = 0
        for file in files:
            before = 0
            for number, rows in enumerate(file.group_rows):
                self._groups.append((file, number, before))
                self._starts.append(start)
                start, before = start + rows, before + rows
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def _place(self, index: int) -> tuple[int, int]:
        group = bisect_right(self._starts, index) - 1
        return group, index - self._starts[group]

    def name(self, index: int) -> str:
        """FILE#ROW, rows counted from 1."""
        group, row = self._place(index)
        file, _, before = self._groups[group]
        return f"{file.name}#{before + row + 1}"

    def read(self, index: int) -> bytes:
        """The stored bytes of one image."""
        group, row = self._place(index)
        with self._lock:
            value = self._rows(group)[row].as_py()
        return stored_bytes(value, self._groups[group][0].path.parent, self.name(index))

    def _rows(self, group: int) -> Any:
        """The group's column; the least recently used ones are let go."""
        import pyarrow.parquet

        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        file, number, _ = self._groups[group]
        try:
            with pyarrow.parquet.ParquetFile(file.path) as opened:
                rows = opened.read_row_group(number, columns=[self._column]).column(0)
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(file.path, error) from error
        self._kept[group] = rows
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return rows


def stored_bytes(value: Any, root: Path, name: str) -> bytes:
    """An image cell: bytes, or {bytes, path} with a path below `root` where the bytes are none.

    Raises:
        UserError: for an empty cell, or a path that leaves root or cannot be read.
    """
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is not None:
        return bytes(content)
    if not path:
        raise unreadable(name, "its cell is empty: delete the row")
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts:
        raise unreadable(name, f"its path {path!r} leads out of {root}: store the bytes, or a path inside")
    try:
        return (root / place).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise unreadable(name, f"its file {path!r} cannot be opened in {root}: check that it exists") from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".")
    return UserError(f"{path} is no Parquet file, or a truncated or damaged one ({reason}): write or fetch it again.")
