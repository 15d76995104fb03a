"""The curves of a run's trainings for its page, read from its TensorBoard files. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keepsight.core.progress import log
from keepsight.recipes.context import folder_name
from keepsight.report.loss_records import FitCurves, LossCurve, thinned

FIGURES = ("loss", "validation")


def losses_of(folder: Path, methods: Sequence[str]) -> list[FitCurves]:
    """Of each fit of these methods that was trained step by step, by method and fit; at most 200 points a curve.

    A training that was killed and went on has several files: of a step that occurs twice the later one counts.
    """
    made = []
    for method in methods:
        start = f"{folder_name(method)}-"
        for place in sorted((folder / "tensorboard").glob(f"{start}*")):
            fit = place.name.removeprefix(start)
            if not fit.startswith(("seed-", "fold-")):  # of a method whose name begins alike
                continue
            curves = _curves(place)
            if curves:
                made.append(FitCurves(method=method, fit=fit, curves=curves))
    return made


def _curves(place: Path) -> tuple[LossCurve, ...]:
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        LegacyEventFileLoader,
    )

    found: dict[str, dict[int, float]] = {figure: {} for figure in FIGURES}
    for file in sorted(place.glob("events.out.tfevents.*"), key=lambda file: file.name.split(".")[3]):
        try:
            for event in LegacyEventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag in found:
                        found[value.tag][int(event.step)] = float(value.simple_value)
        except (
            Exception
        ) as error:  # a curve is not worth a run, and the reader has no error of its own for a damaged file
            log.warning("%s cannot be read (%s): its curve is left out", file, error)
    finite = {
        figure: sorted((step, value) for step, value in steps.items() if abs(value) < float("inf"))
        for figure, steps in found.items()
    }
    return tuple(LossCurve(figure=figure, points=thinned(points)) for figure, points in finite.items() if points)
