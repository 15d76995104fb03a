"""Data sets as a CSV file of paths and labels, and any other rows of paths and labels. Knows nothing of folders' meaning and of
splitting.

Columns (in any order and case, others are ignored): the path (`path`, else `image`, `file` or `filename`), the label
(`label`, else `class`; may be empty), and optionally `split` (train, val or test; may be empty); or as the options say. Commas,
semicolons or tabs; UTF-8. Rows are counted as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.columns import SPLIT_NAMES
from keepsight.data.files import FileImages
from keepsight.data.labels import index_labels
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.pixels import PixelConfig

_PATH = ("path", "image", "file", "filename")
_LABEL = ("label", "class")


@dataclass(frozen=True, slots=True)
class Row:
    """One image as a table says it: the number by which messages call the row, and three cells; blanks around them are removed."""

    number: int
    path: str
    label: str | None
    split: str = ""


@dataclass(frozen=True, slots=True)
class _Checked:
    """A row with its normalised posix path, relative or absolute, and its part."""

    number: int
    name: str
    label: str | None
    part: Part


def read_csv(path: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """The table as a data set, in the order of its rows; classes in natural order.

    Relative paths start from the table's own directory. A path that is listed twice in the same way is kept once.

    Raises:
        UserError: naming the row, for anything that is not as the module says: columns, encoding, a missing file, a
            path that leaves the directory through '..', an unknown split, one path with two labels or splits, a test or
            validation row without a label, or classes that are equal up to case.
    """
    return dataset_of_paths(_rows(path, options), str(path), path.stem or "data", path.parent, options.pixels)


def dataset_of_paths(rows: Iterable[Row], where: str, name: str, root: Path, pixels: PixelConfig) -> Dataset:
    """Rows of paths and labels as a data set of image files; what `read_csv` says holds for them.

    Args:
        rows: One an image.
        where: What messages call the table.
        name: The data set's name.
        root: The directory that relative paths start from.
        pixels: How stored values become RGB.
    """
    checked = _checked(rows, where)
    # os.path says False where pathlib raises: a name that is too long for the system
    missing = [row for row in checked if not os.path.isfile(root / row.name)]  # noqa: PTH113
    if missing:
        raise UserError(
            f"Row {missing[0].number} of {where} names {root / missing[0].name}, which is not there "
            f"({len(missing)} of {len(checked)} files are missing): paths are relative to the table's directory or "
            f"absolute."
        )
    labels, classes = index_labels([row.label for row in checked], f"The table {where}")
    return Dataset(
        name=name,
        images=FileImages(root, [row.name for row in checked], pixels),
        labels=labels,
        classes=classes,
        parts=tuple(row.part for row in checked),
    )


def _checked(rows: Iterable[Row], where: str) -> list[_Checked]:
    kept: dict[str, _Checked] = {}
    stripped = repeated = 0
    for raw in rows:
        label = (raw.label or "").strip()
        stripped += label != (raw.label or "")
        part = _part(where, raw.number, raw.split)
        if part in ("val", "test") and not label:
            raise UserError(f"Row {raw.number} of {where} is in the {part} split but has no label: give it one.")
        row = _Checked(raw.number, _name(where, raw.number, raw.path), label or None, part)
        first = kept.setdefault(row.name, row)
        if (first.label, first.part) != (row.label, row.part):
            what = "labels" if first.label != row.label else "splits"
            raise UserError(
                f"{where} lists {row.name} in row {first.number} and again in row {row.number} with different {what} "
                f"({first.label or 'none'}{first.part and ', ' + first.part}; {row.label or 'none'}"
                f"{row.part and ', ' + row.part}): keep one of them."
            )
        repeated += first is not row
    if stripped:
        log.warning("%s: blanks around %d labels were removed.", where, stripped)
    if repeated:
        log.warning("%s: %d rows that repeat an earlier one were left out.", where, repeated)
    if not kept:
        raise UserError(f"{where} has a header but no rows: list one image per row.")
    return list(kept.values())


def _rows(path: Path, options: DataConfig) -> list[Row]:
    header, records = table_records(path)
    i_path = _column(path, header, _PATH, options.image_column)
    i_label = _column(path, header, _LABEL, options.label_column)
    i_split = _column(path, header, ("split",), options.split_column)
    if i_path is None or i_label is None:
        missing, names = ("path", _PATH) if i_path is None else ("label", _LABEL)
        raise UserError(
            f"{path} has no {missing} column ({' or '.join(names)}): its first row is {', '.join(header)!r}, expected "
            f"'path,label' and optionally 'split'."
        )
    rows = []
    for number, cells in records:
        if len(cells) != len(header):
            raise UserError(
                f"Row {number} of {path} has {len(cells)} cells, but the header has {len(header)}: check its "
                f"separators and quotes."
            )
        rows.append(Row(number, cells[i_path], cells[i_label], cells[i_split] if i_split is not None else ""))
    return rows


def table_records(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header (lower case) and the non-blank records with their row numbers."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start} cannot be read): save it again with the encoding UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"The table {path} cannot be read ({error.strerror}): check that it exists.") from error
    first_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    try:
        records = [
            (number, cells)
            for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), start=1)
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable table ({error}): save it again as plain CSV.") from error
    if not records:
        raise UserError(f"{path} is empty: expected a header 'path,label' and one image per row.")
    return [cell.strip().lower() for cell in records[0][1]], records[1:]


def _column(path: Path, header: list[str], usual: tuple[str, ...], wanted: str | None) -> int | None:
    """The place of the wanted column, which must be there, or of the first of the usual names that is there."""
    for name in usual if wanted is None else (wanted.strip().lower(),):
        if header.count(name) > 1:
            raise UserError(f"{path} has {header.count(name)} columns called {name!r}: keep one.")
        if name in header:
            return header.index(name)
    if wanted is not None:
        raise UserError(f"{path} has no column {wanted!r}: its columns are {', '.join(header)}.")
    return None


def _part(where: str, number: int, cell: str) -> Part:
    try:
        return SPLIT_NAMES[cell.strip().lower()]
    except KeyError:
        raise UserError(
            f"Row {number} of {where} has the split {cell.strip()!r}: expected train, val, test or nothing."
        ) from None


def _name(where: str, number: int, cell: str) -> str:
    if not cell.strip():
        raise UserError(f"Row {number} of {where} has no path: give the image's path or delete the row.")
    name = PurePath(os.path.normpath(cell.strip()))
    if ".." in name.parts:
        raise UserError(
            f"Row {number} of {where} leaves the table's directory through '..' ({cell.strip()}): move the table up or "
            f"use an absolute path."
        )
    return name.as_posix()
