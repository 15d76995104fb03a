"""What a run of ViSFT keeps for its page besides figures: precision of each class (curves.json). Knows no head and no page."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from keepsight.core import Config, UserError
from keepsight.core.files import write_text

CURVES = "curves.json"

RECALLS = tuple(i / 50 for i in range(51))
"""Where precision-recall curves are sampled."""


class Figure(Config):
    """A figure and its 95 % interval over images, as fractions."""

    value: float
    low: float
    high: float


class ClassRecord(Config):
    """One class on one part, at an IoU of .5.

    Attributes:
        name: Of the class.
        objects: So many are marked.
        frozen: Average precision on the untouched backbone.
        tuned: The same after stage 2; None without it.
        change: The paired difference; None without stage 2.
        frozen_precision: At each of `RECALLS`, the best at it or at a higher recall.
        tuned_precision: The same after stage 2; empty without it.
    """

    name: str
    objects: int
    frozen: Figure
    tuned: Figure | None = None
    change: Figure | None = None
    frozen_precision: tuple[float, ...]
    tuned_precision: tuple[float, ...] = ()


class PartRecord(Config):
    """The classes of one task on one part.

    Attributes:
        task: "detection" or "segmentation".
        part: Of the data.
        images: n.
        classes: Those that occur.
    """

    task: str
    part: str
    images: int
    classes: tuple[ClassRecord, ...]


class PrecisionRecord(Config):
    """curves.json."""

    version: int = 1
    parts: tuple[PartRecord, ...]


def write_precision(path: Path, record: PrecisionRecord) -> None:
    """Write curves.json into a run's folder."""
    write_text(path / CURVES, record.model_dump_json() + "\n")


def read_precision(path: Path) -> PrecisionRecord | None:
    """curves.json of a run; None where the run is of a version that wrote none.

    Raises:
        UserError: It is damaged.
    """
    file = path / CURVES
    if not file.is_file():
        return None
    try:
        return PrecisionRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged or of another version: start the run again in another folder.") from error
