"""Precision of each class before and after stage 2, as the record that the page is made from. Knows no folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keepsight.core import Task
from keepsight.evaluate.class_precision import ClassPrecision, class_changes, class_precisions
from keepsight.evaluate.coco import APs
from keepsight.evaluate.intervals import Interval
from keepsight.recipes.visft_measure import Measured
from keepsight.report.scene_records import RECALLS, ClassRecord, Figure, PartRecord, PrecisionRecord

DIGITS = 4


def precision_record(
    names: Sequence[str],
    before: Mapping[tuple[Task, str], Measured],
    after: Mapping[tuple[Task, str], Measured] | None,
) -> PrecisionRecord:
    """Every task with boxes or masks, on every part that was measured.

    Args:
        names: Of the data set's classes.
        before: With the untouched backbone.
        after: With the tuned one; None without stage 2.
    """
    parts = [
        PartRecord(
            task=task,
            part=part,
            images=one.n,
            classes=_classes(names, one.aps[0], after[task, part].aps[0] if after else None),
        )
        for (task, part), one in before.items()
        if one.aps
    ]
    return PrecisionRecord(parts=tuple(parts))


def _classes(names: Sequence[str], before: APs, after: APs | None) -> tuple[ClassRecord, ...]:
    recalls, none = np.array(RECALLS), [None] * len(names)
    frozen = class_precisions(before, recalls)
    tuned = none if after is None else class_precisions(after, recalls)
    changes = none if after is None else class_changes(after, before)
    return tuple(
        ClassRecord(
            name=name,
            objects=one.objects,
            frozen=_figure(one.ap),
            tuned=_figure(two.ap) if two else None,
            change=_figure(change) if change else None,
            frozen_precision=_curve(one),
            tuned_precision=_curve(two) if two else (),
        )
        for name, one, two, change in zip(names, frozen, tuned, changes, strict=True)
        if one
    )


def _figure(found: Interval) -> Figure:
    return Figure(value=found.value, low=found.low, high=found.high)


def _curve(one: ClassPrecision) -> tuple[float, ...]:
    return tuple(np.round(one.precision, DIGITS).tolist())
