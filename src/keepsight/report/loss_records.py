"""The course of every training of a run (losses.json), thinned out. Knows no training and no page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from keepsight.core import Config, UserError
from keepsight.core.files import write_text

LOSSES = "losses.json"

POINTS = 200
"""Of a curve, at most."""


class LossCurve(Config):
    """A figure over steps: "loss" (of the training images) or "validation"."""

    figure: str
    points: tuple[tuple[int, float], ...]


class FitCurves(Config):
    """The curves of one fit: its method and its name in it ("seed-0")."""

    method: str
    fit: str
    curves: tuple[LossCurve, ...]


class Losses(Config):
    """losses.json."""

    version: int = 1
    fits: tuple[FitCurves, ...]


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> tuple[tuple[int, float], ...]:
    """At most so many points: each is the mean of as many neighbours, at the last step of them.

    Example:
        >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], 2)
        ((2, 2.0), (4, 6.0))
    """
    size = -(-len(points) // most) if points else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple((group[-1][0], sum(value for _, value in group) / len(group)) for group in groups)


def write_losses(path: Path, fits: Sequence[FitCurves]) -> None:
    """Write losses.json into a run's folder."""
    write_text(path / LOSSES, Losses(fits=tuple(fits)).model_dump_json() + "\n")


def read_losses(path: Path) -> tuple[FitCurves, ...]:
    """losses.json of a run; empty where the run is of a version that wrote none.

    Raises:
        UserError: It is damaged.
    """
    file = path / LOSSES
    if not file.is_file():
        return ()
    try:
        return Losses.model_validate_json(file.read_text(encoding="utf-8")).fits
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: start the run again, which repairs it.") from error
