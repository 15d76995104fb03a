"""The charts of a run of ViSFT: what changed, the ladder, each class, the heads' training. Knows no page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keepsight.core import Result
from keepsight.report.charts import Curve, CurvePoint, Spot, Tradeoff, curves_chart, interval_chart, tradeoff_chart
from keepsight.report.page import Block, Chart, Table
from keepsight.report.scene_records import RECALLS, ClassRecord, Figure, PartRecord
from keepsight.report.visft import SAID, is_tuned

MOST_CLASSES = 40
"""A chart shows so many classes, those with the most objects; a table has all."""

MOST_CURVES = 6

NAMES = {"detection": "boxes, AP50", "segmentation": "masks, AP50", "captioning": "captions, BLEU-4"}
"""The figure of each task by which rungs are told apart."""

_OVER_IMAGES = "95 % intervals: bootstrap over images, paired."


def change_chart(results: Sequence[Result]) -> Chart | None:
    """Each change that has a paired interval, in points; None without stage 2."""
    spots = [
        Spot(
            f"{SAID[metric]}, {r.split}", 100 * r.value, 100 * r.ci_low, 100 * r.ci_high, r.split, f"n = {r.n:,} images"
        )
        for r in results
        if is_tuned(r) and r.metric.endswith("_change") and np.isfinite((r.value, r.ci_low, r.ci_high)).all()
        for metric in (r.metric.removesuffix("_change"),)
        if metric in SAID
    ]
    if not spots:
        return None
    return interval_chart(
        "What stage 2 changed",
        spots,
        axis="change of average precision, points",
        caption=f"Tuned minus frozen backbone, same heads; to the right is better. {_OVER_IMAGES} Validation chose the rung.",
        description="The change of each average precision by stage 2, with its interval; zero is no change.",
        reference=0.0,
    )


def ladder_charts(choice: Mapping[str, Any]) -> list[Block]:
    """The rungs: gain on the trained tasks against gain on other data, and each task's figure over the steps."""
    rungs, tasks = choice["rungs"], list(choice["rungs"][0]["tasks"])
    gains = [{task: 100 * (rung["tasks"][task] - rungs[0]["tasks"][task]) for task in tasks} for rung in rungs]
    made: list[Block] = []
    if all(rung["probes"] is not None for rung in rungs):
        spots = [
            Tradeoff(
                f"{rung['step']} steps{' (chosen)' if rung['step'] == choice['step'] else ''}",
                float(np.mean(list(gain.values()))),
                None,
                None,
                rung["probes"],
                None,
                None,
                "checkpoints",
            )
            for rung, gain in zip(rungs, gains, strict=True)
        ]
        made.append(
            tradeoff_chart(
                "Trained tasks against other data",
                spots,
                x_axis="mean gain on the trained tasks, points",
                y_axis="linear probes of other data, points",
                caption="Each checkpoint of stage 2 on validation images and on the half of the other data that choices are made "
                "on, without intervals: it says what was chosen, not what was gained.",
                description="Gain of linear probes on other data against the mean gain on the trained tasks, for each checkpoint.",
                connected=("checkpoints",),
            )
        )
    curves = [
        Curve(
            NAMES.get(task, task),
            tuple(CurvePoint(rung["step"], gain[task]) for rung, gain in zip(rungs, gains, strict=True)),
        )
        for task in tasks
    ]
    if made:
        points = tuple(CurvePoint(rung["step"], rung["probes"]) for rung in rungs)
        curves.append(Curve("linear probes of other data", points))
    made.append(
        curves_chart(
            "The ladder, step by step",
            curves,
            x_axis="steps of stage 2",
            y_axis="gain over the untouched backbone, points",
            caption="On validation images, without intervals.",
            description="The gain of each trained task and of the probes over the steps of stage 2.",
        )
    )
    return made


def class_blocks(part: PartRecord) -> list[Block]:
    """Average precision of each class on one part, its change, and precision-recall curves."""
    where = f"{'Boxes' if part.task == 'detection' else 'Masks'} on {part.part}"
    common = sorted(part.classes, key=lambda each: -each.objects)
    shown = sorted(common[:MOST_CLASSES], key=lambda each: -_last(each).value)
    left_out = len(common) - len(shown)
    some = f" The {MOST_CLASSES} classes with the most objects; the table has all." if left_out else ""
    made: list[Block] = [
        interval_chart(
            f"{where}: each class",
            [_spot(each, _last(each)) for each in shown],
            axis="AP50, %",
            caption=f"{_state(part)}. n = {part.images:,} images; 95 % intervals: bootstrap over images.{some}",
            description=f"{where}: average precision of each class at an IoU of 0.5, with its interval.",
        )
    ]
    changes = [_spot(each, each.change) for each in shown if each.change is not None]
    if changes:
        made.append(
            interval_chart(
                f"{where}: what stage 2 changed in each class",
                changes,
                axis="change of AP50, points",
                caption=f"n = {part.images:,} images. {_OVER_IMAGES} Of 20 classes that did not change, one would seem to.{some}",
                description=f"{where}: change of each class's average precision, with its interval; zero is no change.",
                reference=0.0,
            )
        )
    if left_out:
        made.append(_class_table(where, part))
    return [*made, *_precision_recall(where, part, common)]


def _last(each: ClassRecord) -> Figure:
    return each.tuned or each.frozen


def _state(part: PartRecord) -> str:
    return "Tuned backbone" if any(each.tuned for each in part.classes) else "Frozen backbone"


def _spot(each: ClassRecord, figure: Figure) -> Spot:
    note = f"{each.objects:,} objects"
    return Spot(each.name, 100 * figure.value, 100 * figure.low, 100 * figure.high, note=note)


def _class_table(where: str, part: PartRecord) -> Table:
    def text(figure: Figure | None, sign: str = "") -> str:
        if figure is None:
            return "-"
        value, low, high = (f"{round(100 * v, 1) + 0.0:{sign}.1f}" for v in (figure.value, figure.low, figure.high))
        return f"{value} [{low}, {high}]"

    rows = tuple(
        (each.name, f"{each.objects:,}", text(each.frozen), text(each.tuned), text(each.change, "+"))
        for each in part.classes
    )
    headings = ("class", "objects", "frozen backbone", "tuned", "change")
    return Table(title=f"{where}: AP50 of every class, %", headings=headings, rows=rows, filtered=True)


def _precision_recall(where: str, part: PartRecord, common: Sequence[ClassRecord]) -> list[Block]:
    """The mean over classes before and after, and the classes with the most objects."""
    means = [Curve("frozen backbone", _points(np.mean([each.frozen_precision for each in part.classes], axis=0)))]
    tuned = [each.tuned_precision for each in part.classes if each.tuned_precision]
    if tuned:
        means.append(Curve("tuned", _points(np.mean(tuned, axis=0))))
    few = [Curve(each.name, _points(each.tuned_precision or each.frozen_precision)) for each in common[:MOST_CURVES]]
    axes: dict[str, Any] = {"x_axis": "recall", "y_axis": "precision", "y_domain": (0.0, 1.0)}
    return [
        curves_chart(
            f"{where}: precision and recall, mean over classes",
            means,
            caption=f"At an IoU of 0.5, {len(part.classes)} classes, n = {part.images:,} images. The area below is AP50.",
            description=f"{where}: precision against recall as a mean over classes.",
            **axes,
        ),
        curves_chart(
            f"{where}: precision and recall of classes",
            few,
            caption=f"{_state(part)}, at an IoU of 0.5: the {len(few)} classes with the most objects.",
            description=f"{where}: precision against recall of the classes with the most objects.",
            **axes,
        ),
    ]


def _points(precision: Sequence[float] | np.ndarray[Any, Any]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(recall, round(float(p), 4)) for recall, p in zip(RECALLS, precision, strict=True))


def training_charts(path: Path) -> list[Block]:
    """What each head was on validation images while it was trained, by what its weights were kept for; of heads taken from another
    run, too."""
    made: list[Block] = []
    for file in sorted((path / "heads").glob("*/head.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if len(record.get("validation", ())) > 1:
            by_loss = record.get("selected_by", "loss") == "loss"
            points = tuple(CurvePoint(s, -score if by_loss else 100 * score) for s, score in record["validation"])
            made.append(
                curves_chart(
                    f"Head for {record['task']}",
                    [Curve("validation", points)],
                    x_axis="steps of stage 1",
                    y_axis="validation loss" if by_loss else "AP50 of boxes on validation images, %",
                    caption=f"{record['kind']}, on the frozen backbone; the weights of step {record['selected_step']:,} were kept.",
                    description=f"The head for {record['task']} on validation images over the steps of its training.",
                )
            )
    return made
