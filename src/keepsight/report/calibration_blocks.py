"""Calibration on the page of a run: reliability before and after temperature scaling, and the calibration error of every method."""

from __future__ import annotations

from collections.abc import Sequence

from keepsight.report.classification_charts import Bin, reliability_chart
from keepsight.report.diagnosis_records import BinRecord, Calibration, Estimate
from keepsight.report.page import Block, Chart, Table, Text
from keepsight.report.run_records import RunRecords
from keepsight.report.summary import percent

MULTILABEL = (
    "Images may have several classes: calibration, confusion and single mistakes are not defined; the average precision of each "
    "class is above."
)


def calibration_blocks(run: RunRecords) -> list[Block]:
    """Diagrams of the recommended method and of the baseline, and a table of all."""
    found = run.diagnosis
    if found is None or not found.methods:
        return []
    if found.multilabel:
        return [Text(text=MULTILABEL)]
    shown = [name for name in dict.fromkeys([run.method, run.baseline]) if name is not None]
    charts = [_diagram(name, m.calibration, m.images) for name in shown if (m := found.of(name)) and m.calibration]
    return [*charts, _table(run)]


def _diagram(method: str, of: Calibration, n: int) -> Chart:
    bins = {"as predicted": _bins(of.bins)}
    if of.temperature is not None:
        bins[f"temperature {of.temperature:.2f}"] = _bins(of.bins_after)
        said = (
            f"The temperature was fitted on the {of.fitted_on:,} labelled images, each predicted when it was held out, and never "
            "on test images."
        )
    else:
        said = "There is no temperature: too few labels for a cross-validation."
    return reliability_chart(
        f"How sure {method} is, and how often it is right",
        bins,
        caption=f"n = {n:,} test images, first seed; bins of confidence of width 0.1 with Wilson's 95 % intervals. On the diagonal "
        f"confidence is accuracy; below it is too sure. {said}",
        description=f"Reliability diagram of {method}: share right against confidence.",
    )


def _bins(found: Sequence[BinRecord]) -> tuple[Bin, ...]:
    return tuple(Bin(b.confidence, b.accuracy, b.low, b.high, b.n) for b in found)


def _table(run: RunRecords) -> Table:
    assert run.diagnosis is not None
    known = [(m.method, m.images, m.calibration) for m in run.diagnosis.methods if m.calibration is not None]
    n = known[0][1] if known else 0
    return Table(
        title="Expected calibration error",
        caption=f"Over 15 bins (Guo et al. 2017), in %, with 95 % bootstrap intervals over images; n = {n:,} test "
        "images, first seed. A temperature above 1 makes predictions less sure; it changes no prediction's class.",
        headings=("method", "as predicted", "temperature", "with temperature", "change, points"),
        rows=tuple(
            (
                method,
                _estimate(of.ece),
                "-" if of.temperature is None else f"{of.temperature:.2f}",
                _estimate(of.ece_after),
                _change(of.change),
            )
            for method, _, of in known
        ),
        marked=tuple(i for i, (method, _, _) in enumerate(known) if method == run.method),
    )


def _estimate(found: Estimate | None) -> str:
    return f"{percent(found.value)} [{percent(found.low)}, {percent(found.high)}]" if found else "-"


def _change(found: Estimate | None) -> str:
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]" if found else "-"
