"""`Result` records of a finished run's cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keepsight.core import Result
from keepsight.data.splits import Splits
from keepsight.evaluate.classification import METRICS
from keepsight.evaluate.intervals import Interval, interval
from keepsight.recipes.cells import Cell, CellOutcome, Context
from keepsight.recipes.config import MethodName


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
    )


def records_of(
    context: Context, splits: Splits, outcomes: Mapping[tuple[MethodName, str], CellOutcome], cv: Sequence[Cell]
) -> list[Result]:
    """For each method: every metric on test for each seed and over seeds, and its cross-validated error."""
    labels, made = context.dataset.labels, []
    for method in context.config.methods:
        first = splits.draws[0]
        of = [outcomes[method, f"seed-{draw.seed}"] for draw in splits.draws]
        if len(splits.test):
            truth, n = labels[splits.test], len(splits.test)
            for name, metric in METRICS.items():
                for draw, outcome in zip(splits.draws, of, strict=True):
                    found = interval(metric, [outcome.probabilities], truth)
                    made.append(
                        _result(context, method, "test", name, found, n, len(draw.labelled), draw.seed, [outcome])
                    )
                found = interval(metric, [outcome.probabilities for outcome in of], truth)
                made.append(_result(context, method, "test", name, found, n, len(first.labelled), None, of))
        folds = [c for c in cv if c.method == method]
        if folds:
            probabilities = np.concatenate([outcomes[method, c.name].probabilities for c in folds])
            truth = labels[np.concatenate([c.measured_on for c in folds])]
            found = interval(METRICS["error"], [probabilities], truth)
            made.append(
                _result(
                    context, method, "cross-validation", "error", found, len(truth), len(first.labelled), first.seed, of
                )
            )
    return made
