"""Data sets as a CSV file of paths and labels. Knows nothing of folders' meaning and of splitting.

Columns (in any order and case, others are ignored): the path (`path`, else `image`, `file` or `filename`), the label
(`label`, else `class`; may be empty), and optionally `split` (train, val or test; may be empty). Commas, semicolons or
tabs; UTF-8. Rows are counted as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.files import FileImages
from keepsight.data.labels import index_labels

_PATH = ("path", "image", "file", "filename")
_LABEL = ("label", "class")
_PARTS: dict[str, Part] = {
    "": "",
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class _Row:
    """One image: its row, its name (normalised posix path, relative or absolute), label and part."""

    number: int
    name: str
    label: str | None
    part: Part


def read_csv(path: Path) -> Dataset:
    """The table as a data set, in the order of its rows; classes in natural order.

    Relative paths start from the table's own directory. A path that is listed twice in the same way is kept once.

    Raises:
        UserError: naming the row, for anything that is not as the module says: columns, encoding, a missing file, a
            path that leaves the directory through '..', an unknown split, one path with two labels or splits, a test or
            validation row without a label, or classes that are equal up to case.
    """
    rows = _rows(path)
    _check_files(path, rows)
    labels, classes = index_labels([row.label for row in rows], f"The table {path}")
    return Dataset(
        name=path.stem or "data",
        images=FileImages(path.parent, [row.name for row in rows]),
        labels=labels,
        classes=classes,
        parts=tuple(row.part for row in rows),
    )


def _rows(path: Path) -> list[_Row]:
    header, records = _records(path)
    i_path, i_label, i_split = (_column(path, header, names) for names in (_PATH, _LABEL, ("split",)))
    if i_path is None or i_label is None:
        missing, names = ("path", _PATH) if i_path is None else ("label", _LABEL)
        raise UserError(
            f"{path} has no {missing} column ({' or '.join(names)}): its first row is {', '.join(header)!r}, expected "
            f"'path,label' and optionally 'split'."
        )
    rows: dict[str, _Row] = {}
    stripped = repeated = 0
    for number, cells in records:
        if len(cells) != len(header):
            raise UserError(
                f"Row {number} of {path} has {len(cells)} cells, but the header has {len(header)}: check its "
                f"separators and quotes."
            )
        label = cells[i_label].strip()
        stripped += label != cells[i_label]
        part = _part(path, number, cells[i_split] if i_split is not None else "")
        if part in ("val", "test") and not label:
            raise UserError(f"Row {number} of {path} is in the {part} split but has no label: give it one.")
        row = _Row(number, _name(path, number, cells[i_path]), label or None, part)
        first = rows.setdefault(row.name, row)
        if (first.label, first.part) != (row.label, row.part):
            what = "labels" if first.label != row.label else "splits"
            raise UserError(
                f"{path} lists {row.name} in row {first.number} and again in row {number} with different {what} "
                f"({first.label or 'none'}{first.part and ', ' + first.part}; {row.label or 'none'}"
                f"{row.part and ', ' + row.part}): keep one of them."
            )
        repeated += first is not row
    if stripped:
        log.warning("%s: blanks around %d labels were removed.", path, stripped)
    if repeated:
        log.warning("%s: %d rows that repeat an earlier one were left out.", path, repeated)
    if not rows:
        raise UserError(f"{path} has a header but no rows: list one image per row.")
    return list(rows.values())


def _records(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
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


def _column(path: Path, header: list[str], names: tuple[str, ...]) -> int | None:
    """The place of the first of these names that is there."""
    for name in names:
        if header.count(name) > 1:
            raise UserError(f"{path} has {header.count(name)} columns called {name!r}: keep one.")
        if name in header:
            return header.index(name)
    return None


def _part(path: Path, number: int, cell: str) -> Part:
    try:
        return _PARTS[cell.strip().lower()]
    except KeyError:
        raise UserError(
            f"Row {number} of {path} has the split {cell.strip()!r}: expected train, val, test or nothing."
        ) from None


def _name(path: Path, number: int, cell: str) -> str:
    if not cell.strip():
        raise UserError(f"Row {number} of {path} has no path: give the image's path or delete the row.")
    name = PurePath(os.path.normpath(cell.strip()))
    if ".." in name.parts:
        raise UserError(
            f"Row {number} of {path} leaves the table's directory through '..' ({cell.strip()}): move the table up or "
            f"use an absolute path."
        )
    return name.as_posix()


def _check_files(path: Path, rows: list[_Row]) -> None:
    missing = [row for row in rows if not (path.parent / row.name).is_file()]
    if missing:
        raise UserError(
            f"Row {missing[0].number} of {path} names {path.parent / missing[0].name}, which is not there "
            f"({len(missing)} of {len(rows)} files are missing): paths are relative to the table's directory or "
            f"absolute."
        )
