"""`Result` records of a finished run's cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keepsight.core import Result
from keepsight.data.splits import Draw, Splits
from keepsight.evaluate.classification import METRICS, Floats
from keepsight.evaluate.intervals import Interval, interval
from keepsight.evaluate.multilabel import MAP, multilabel_intervals
from keepsight.evaluate.resampled import all_intervals
from keepsight.recipes.cells import Cell, CellOutcome, Context
from keepsight.recipes.context import Indices

VALIDATION = "validation"
"""The cell, and the split in records, that is measured on validation images where labelled ones allow no cross-validation."""


def _result(
    context: Context,
    method: str,
    split: str,
    metric: str,
    found: Interval,
    n: int,
    labels: int,
    seed: int | None,
    of: Sequence[CellOutcome],
) -> Result:
    records = [outcome.record for outcome in of]
    return Result(
        task="classification",
        dataset=context.dataset.name,
        split=split,
        method=method,
        backbone=context.backbone.name,
        readout=str(context.readout),
        metric=metric,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.kind,
        n=n,
        labels=labels,
        seed=seed,
        seeds=len(of) if split == "test" else 1,
        spread=found.spread,
        selection=records[0].selection,
        trainable_parameters=records[0].trainable_parameters,
        seconds=float(np.mean([r.seconds for r in records])),
        peak_mib=max(r.peak_mib for r in records),
        retain=method.partition("+")[2] or None,
    )


def on_test(context: Context, method: str, test: Indices, of: Sequence[tuple[Draw, CellOutcome]]) -> list[Result]:
    """Every metric of one method on the test images, for each of the draws it was fitted on and over all of them."""
    n, made = len(test), []
    if n == 0 or not of:
        return []
    labels, outcomes = len(of[0][0].labelled), [outcome for _, outcome in of]
    for name, found in _intervals(context, outcomes, test).items():
        for (draw, outcome), alone in zip(of, found, strict=False):
            made.append(_result(context, method, "test", name, alone, n, len(draw.labelled), draw.seed, [outcome]))
        made.append(_result(context, method, "test", name, found[-1], n, labels, None, outcomes))
    return made


def _intervals(context: Context, outcomes: Sequence[CellOutcome], test: Indices) -> dict[str, list[Interval]]:
    dataset, predictions = context.dataset, [outcome.probabilities for outcome in outcomes]
    if dataset.targets is not None:
        return multilabel_intervals(predictions, dataset.targets[test], dataset.classes)
    return all_intervals(predictions, dataset.labels[test])


def _cross_validated(context: Context, predicted_NK: Floats, indices: Indices) -> tuple[str, Interval | None]:
    """The figure that methods are compared by; None where it is not defined."""
    dataset = context.dataset
    if dataset.targets is not None:
        found = multilabel_intervals([predicted_NK], dataset.targets[indices], dataset.classes)
        return MAP, found[MAP][0] if MAP in found else None
    return "error", interval(METRICS["error"], [predicted_NK], dataset.labels[indices])


def records_of(
    context: Context,
    methods: Sequence[str],
    splits: Splits,
    outcomes: Mapping[tuple[str, str], CellOutcome],
    cv: Sequence[Cell],
) -> list[Result]:
    """For each method: every metric on test for each seed and over seeds, and its cross-validated error (or mAP).

    A method is called as `Cell.title` does.
    """
    made = []
    for method in methods:
        first = splits.draws[0]
        of = [(draw, outcomes[method, f"seed-{draw.seed}"]) for draw in splits.draws]
        made += on_test(context, method, splits.test, of)
        folds = [c for c in cv if c.title == method]
        if folds:
            probabilities = np.concatenate([outcomes[method, c.name].probabilities for c in folds])
            indices = np.concatenate([c.measured_on for c in folds])
            metric, found = _cross_validated(context, probabilities, indices)
            if found is None:
                continue
            records = [outcome for _, outcome in of]
            made.append(
                _result(
                    context,
                    method,
                    VALIDATION if folds[0].name == VALIDATION else "cross-validation",
                    metric,
                    found,
                    len(indices),
                    len(first.labelled),
                    first.seed,
                    records,
                )
            )
    return made
