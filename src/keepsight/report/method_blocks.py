"""The tables of methods on the page of a run: error and cost, other metrics, the average precision of each class."""

from __future__ import annotations

from keepsight.core import Result
from keepsight.report.charts import Curve, CurvePoint, curves_chart
from keepsight.report.page import Block, Chart, Table
from keepsight.report.run_records import RunRecords
from keepsight.report.summary import caption, cells, headings, is_of_class, percent, rows

COST = (
    "Seconds and peak memory are those of one seed: fitting and predicting, without the features, which are computed once and "
    "shared. No choice was made on test images."
)

SEVERAL = 24
"""Curves in one chart, at most: of more the first seed's are drawn."""


def method_blocks(run: RunRecords) -> list[Block]:
    """Error and cost of every method, other metrics, and the average precision of each class of multi-label data."""
    found = rows(run.results)
    marked = tuple(i for i, row in enumerate(found) if row.method == run.method)
    made: list[Block] = []
    if found:
        made.append(
            Table(
                title="Methods",
                caption=f"{caption(run.results)}. {COST}",
                headings=headings(run.results),
                rows=tuple(cells(row) for row in found),
                marked=marked,
                filtered=len(found) > 12,
            )
        )
    made += [table for table in (_metrics(run), _classes(run)) if table is not None]
    return made


def _figure(result: Result | None) -> str:
    return f"{percent(result.value)} [{percent(result.ci_low)}, {percent(result.ci_high)}]" if result else "-"


def _metrics(run: RunRecords) -> Table | None:
    tests = [r for r in run.results if r.split == "test" and r.seed is None and r.metric != run.metric]
    summaries = [r for r in tests if not is_of_class(r.metric)]
    if not summaries:
        return None
    names = list(dict.fromkeys(r.metric for r in summaries))
    methods = list(dict.fromkeys(r.method for r in summaries))
    return Table(
        title="Other metrics on the test images",
        caption=f"In %, with 95 % intervals; n = {summaries[0].n:,}.",
        headings=("method", *(name.replace("_", " ") for name in names)),
        rows=tuple((method, *(_figure(run.summary(method, name)) for name in names)) for method in methods),
        marked=tuple(i for i, method in enumerate(methods) if method == run.method),
    )


def _classes(run: RunRecords) -> Table | None:
    of = {
        (r.metric, r.method): r for r in run.results if r.split == "test" and r.seed is None and is_of_class(r.metric)
    }
    if not of:
        return None
    metrics, methods = (list(dict.fromkeys(key[i] for key in of)) for i in (0, 1))
    return Table(
        title="Average precision of each class",
        caption="In %, with 95 % intervals, on the test images; classes without a test image are left out.",
        headings=("class", *methods),
        rows=tuple((metric[3:-1], *(_figure(of.get((metric, method))) for method in methods)) for metric in metrics),
        filtered=len(metrics) > 12,
    )


def learning_blocks(run: RunRecords) -> list[Block]:
    """Loss and validation over the steps of each training on a seed's labels."""
    made = [
        _curves(run, "loss", "Loss of the training images", "loss"),
        _curves(run, "validation", "Score on the validation images", "score (up: better)"),
    ]
    return [block for block in made if block is not None]


def _curves(run: RunRecords, figure: str, title: str, axis: str) -> Chart | None:
    fits = [fit for fit in run.losses if fit.fit.startswith("seed-")]
    if len(fits) > SEVERAL:
        fits = [fit for fit in fits if fit.fit == fits[0].fit]
    curves = [
        Curve(f"{fit.method}, {fit.fit.replace('-', ' ')}", tuple(CurvePoint(step, value) for step, value in c.points))
        for fit in fits
        for c in fit.curves
        if c.figure == figure
    ]
    if not curves:
        return None
    return curves_chart(
        title,
        curves,
        x_axis="step",
        y_axis=axis,
        caption="One line a training; of a long training each point is the mean of neighbouring steps.",
        description=f"{title} over the steps of {len(curves)} trainings.",
    )
