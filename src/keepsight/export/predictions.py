"""Predictions as CSV, Parquet or JSON lines, written batch by batch. Knows no command line.

Every file has one row an image: its path, the predicted label (of a multi-label model all classes with a probability of one half or
more, joined by |) and the probability of every class. Names are quoted (CSV) or
escaped (JSON), so that commas, quotes and line ends in them break nothing. A spreadsheet takes a cell that begins with =, +, -
or @ for a formula: in CSV such a path gets ./ before it, which means the same file. Class names are written as they are.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from keepsight.core import ImageList, UserError
from keepsight.core.files import atomic_file
from keepsight.core.progress import Track
from keepsight.data.files import FileImages
from keepsight.data.pixels import AS_STORED, PixelConfig
from keepsight.export.model import TunedModel, as_image_list

FORMATS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}
"""What a file's ending says about its format."""

Names = Sequence[str]
Write = Callable[[Names, Names, NDArray[np.float32]], None]
"""Takes the paths [B], the labels [B] and the probabilities [B, K] of one batch."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Images that were written, and unreadable ones that were left out."""

    written: int
    skipped: int


def write_predictions(
    model: TunedModel,
    images: Sequence[str],
    out: Path | None,
    format: str | None = None,
    *,
    skip_bad: bool = False,
    batch_size: int = 64,
) -> Counts:
    """Predict on image files, or on one folder, table or data set, and write while predicting.

    Args:
        model: What predicts.
        images: Paths or one name.
        out: File that appears when all is written; None for standard output.
        format: csv, parquet or jsonl; None for what the file's name ends in (csv on standard output).
        skip_bad: Leave unreadable images out and count them.
        batch_size: Images a forward pass.

    Raises:
        UserError: An unknown format, nothing to predict, or an unreadable image.
    """
    chosen = _format(out, format)
    source = images_to_predict(images, model.pixels)
    written = 0
    with _writer(chosen, out, model.classes) as write, Track("predicting", len(source), "images") as track:
        for indices, probabilities_BK in model.stream(source, np.arange(len(source)), batch_size, skip_bad):
            labels = [model.answer(row) for row in probabilities_BK]
            write([_encodable(source.name(i)) for i in indices.tolist()], labels, probabilities_BK)
            written += len(indices)
            track.advance(len(indices))
    return Counts(written, len(source) - written)


def _format(out: Path | None, format: str | None) -> str:
    chosen = format or ("csv" if out is None else FORMATS.get(out.suffix.lower()))
    if chosen is None:
        raise UserError(
            f"The name {out} does not say the format: let it end in {', '.join(FORMATS)}, or give --format csv, parquet or jsonl."
        )
    if chosen == "parquet" and out is None:
        raise UserError("Parquet cannot be written to the terminal: give --out FILE.parquet.")
    return chosen


def images_to_predict(images: Sequence[str], pixels: PixelConfig = AS_STORED) -> ImageList:
    """Paths of images, or one folder, table or data set by its name; UserError for a folder among several paths."""
    if len(images) == 1:
        return as_image_list(images[0], pixels)
    for name in images:
        if Path(name).is_dir():
            raise UserError(f"{name} is a folder among several paths: give one folder alone, or image files.")
    return FileImages(Path(), images, pixels)


def _encodable(name: str) -> str:
    """Names of files that are no valid UTF-8 come with surrogates, which no file can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def _columns(classes: Names) -> list[str]:
    return ["path", "label", *(f"p({name})" for name in classes)]


@contextmanager
def _writer(format: str, out: Path | None, classes: Names) -> Iterator[Write]:
    if out is None:
        yield _csv(sys.stdout, classes) if format == "csv" else _jsonl(sys.stdout, classes)
        return
    with atomic_file(out) as temporary:
        if format == "parquet":
            with _parquet(temporary, classes) as write:
                yield write
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            yield _csv(file, classes) if format == "csv" else _jsonl(file, classes)


def _csv(file: Any, classes: Names) -> Write:
    writer = csv.writer(file)
    writer.writerow(_columns(classes))

    def write(paths: Names, labels: Names, probabilities_BK: NDArray[np.float32]) -> None:
        for path, label, row in zip(paths, labels, probabilities_BK.tolist(), strict=True):
            is_formula = path[:1] in ("=", "+", "-", "@", "\t", "\r")
            writer.writerow([f"./{path}" if is_formula else path, label, *(f"{p:.6f}" for p in row)])

    return write


def _jsonl(file: Any, classes: Names) -> Write:
    def write(paths: Names, labels: Names, probabilities_BK: NDArray[np.float32]) -> None:
        for path, label, row in zip(paths, labels, probabilities_BK.tolist(), strict=True):
            by_class = dict(zip(classes, (round(p, 6) for p in row), strict=True))
            file.write(json.dumps({"path": path, "label": label, "probabilities": by_class}) + "\n")

    return write


@contextmanager
def _parquet(path: Path, classes: Names) -> Iterator[Write]:
    types = [pa.string(), pa.string(), *(pa.float32() for _ in classes)]
    schema = pa.schema(list(zip(_columns(classes), types, strict=True)))
    with parquet.ParquetWriter(path, schema) as writer:

        def write(paths: Names, labels: Names, probabilities_BK: NDArray[np.float32]) -> None:
            columns = [pa.array(paths), pa.array(labels), *(pa.array(column) for column in probabilities_BK.T)]
            writer.write_batch(pa.record_batch(columns, schema=schema))

        yield write
