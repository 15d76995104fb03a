"""The page of several runs: a table of them, gain against forgetting over all, and paired differences. From records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keepsight.core import Result
from keepsight.report.chart_parts import unlike
from keepsight.report.charts import Spot, Tradeoff, interval_chart, tradeoff_chart
from keepsight.report.page import Block, Page, Table, Text, sections
from keepsight.report.run_records import RunRecords
from keepsight.report.summary import MAP, percent

GROUPED = 8
"""With more runs than these the points of a picture are grouped by method."""

PAIRS = 2000
"""Rows of the table of pairs, at most."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One of several runs.

    Attributes:
        name: Of its folder.
        page: Its own.
        records: Of a run of `tune` or `compare`; None for other kinds.
    """

    name: str
    page: Page
    records: RunRecords | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """The recommended methods of two runs on the same data: first - second.

    Attributes:
        first, second: Positions in the list of runs.
        value, low, high: Of the difference of errors (or mAP), as fractions.
        n: Test images that are paired; 0 where they are not the same, and then the ends are bounds.
        seeds: In common.
        p: Of McNemar's exact test on the first seed; None where nothing is paired.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    n: int = 0
    seeds: int = 0
    p: float | None = None


def runs_page(runs: Sequence[Listed], pairs: Sequence[Pair], version: str) -> Page:
    """The page.

    Args:
        runs: In the order in which they were given.
        pairs: See `Pair`.
        version: keepsight's, which makes the page.
    """
    names = unlike(run.name for run in runs)
    kinds = sorted({run.page.kind for run in runs})
    return Page(
        version=version,
        kind="runs",
        title=f"{len(runs)} runs",
        answer=_answer(runs, pairs, names),
        lead=(f"Kinds: {', '.join(kinds)}. Each run's own sentence is in the table.",),
        sections=sections(
            [
                ("Runs", [_table(runs, names)]),
                ("Gain against forgetting", _pictures(runs, names)),
                ("In pairs", _pairs(runs, pairs, names)),
            ]
        ),
    )


def _chosen(run: Listed) -> Result | None:
    return run.records.summary(run.records.method) if run.records is not None else None


def _answer(runs: Sequence[Listed], pairs: Sequence[Pair], names: Sequence[str]) -> str:
    sure = [pair for pair in pairs if pair.n and (pair.low > 0 or pair.high < 0)]
    paired = sum(pair.n > 0 for pair in pairs)
    if len(runs) == 2 and paired:
        pair = pairs[0]
        which = "not surely different" if not sure else "better" if _first_is_better(runs, pair) else "worse"
        return (
            f"On the same {pair.n:,} test images {names[0]} is {which}{' from' if not sure else ' than'} {names[1]}: "
            f"{_difference(pair)} (95 % interval), p = {pair.p:.2g}."
        )
    if paired:
        return f"Of {paired:,} pairs of runs on the same test images {len(sure):,} differ surely (95 % intervals, each by itself)."
    return f"{len(runs)} runs, no two of which were tested on the same images with a record of their answers."


def _first_is_better(runs: Sequence[Listed], pair: Pair) -> bool:
    records = runs[pair.first].records
    return (pair.value > 0) == (records is not None and records.metric == MAP)


def _difference(pair: Pair) -> str:
    return f"{100 * pair.value:+.1f} points [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"


def _table(runs: Sequence[Listed], names: Sequence[str]) -> Table:
    rows = []
    for run, name in zip(runs, names, strict=True):
        records, own = run.records, _chosen(run)
        gain = records.gain(records.method) if records else None
        forgot = records.forgot(records.method) if records else None
        rows.append(
            (
                name,
                run.page.kind,
                run.page.title,
                records.method if records else "-",
                f"{own.labels:,}" if own else "-",
                f"{own.n:,}" if own else "-",
                f"{percent(own.value)} [{percent(own.ci_low)}, {percent(own.ci_high)}]" if own else "-",
                f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if gain else "-",
                f"{100 * forgot.value:+.1f} [{100 * forgot.low:+.1f}, {100 * forgot.high:+.1f}]" if forgot else "-",
                f"{own.seconds:.1f}" if own else "-",
                run.page.answer,
            )
        )
    return Table(
        caption="Test figures are errors in %, of multi-label data mAP; gain is over the strongest cheap method of the same "
        "run, and forgetting the change of linear-probe accuracy on other data, both in points. In brackets 95 % intervals.",
        headings=(
            "run",
            "kind",
            "data",
            "recommended",
            "labels",
            "test images",
            "test figure %",
            "gain",
            "forgetting",
            "seconds a fit",
            "answer",
        ),
        rows=tuple(rows),
        filtered=True,
    )


def _pictures(runs: Sequence[Listed], names: Sequence[str]) -> list[Block]:
    points, spots = [], []
    for run, name in zip(runs, names, strict=True):
        records = run.records
        if records is None or records.metric == MAP:
            continue
        for method in records.methods:
            own, forgot = records.summary(method), records.forgot(method)
            if own is None:
                continue
            chosen = method == records.method
            if chosen:
                spots.append(Spot(name, 100 * own.value, 100 * own.ci_low, 100 * own.ci_high, records.name, method))
            if records.is_tuned(method) and forgot is None:
                continue
            points.append(
                Tradeoff(
                    name=f"{name}: {method}",
                    x=100 * forgot.value if forgot else 0.0,
                    x_low=100 * forgot.low if forgot else None,
                    x_high=100 * forgot.high if forgot else None,
                    y=100 * own.value,
                    y_low=100 * own.ci_low,
                    y_high=100 * own.ci_high,
                    group=name if len(runs) <= GROUPED else method,
                    note=f"{records.name}{'; recommended' if chosen else ''}",
                )
            )
    made: list[Block] = []
    if points:
        made.append(
            tradeoff_chart(
                "Test error and forgetting of every method of every run",
                points,
                x_axis="change of linear-probe accuracy on other data, points (left: forgotten)",
                y_axis="test error, % (down: better)",
                caption="Bars: 95 % intervals. Errors on different data are not comparable. Methods that leave the backbone "
                "as it is forget nothing; runs that did not measure forgetting are left out.",
                description="Test error against what was forgotten, a point a run and method.",
            )
        )
    if spots:
        made.append(
            interval_chart(
                "Test error of the recommended methods",
                spots,
                axis="test error, %",
                caption="Lower is better; lines: 95 % intervals. Errors on different data are not comparable.",
                description=f"Test error of the recommended methods of {len(spots)} runs, with 95 % intervals.",
            )
        )
    return made


def _pairs(runs: Sequence[Listed], pairs: Sequence[Pair], names: Sequence[str]) -> list[Block]:
    if not pairs:
        return [Text(text="No two of the runs are of the same data with test figures.")]
    rows = []
    for pair in pairs[:PAIRS]:
        methods = [records.method if (records := runs[i].records) else "" for i in (pair.first, pair.second)]
        rows.append(
            (
                f"{names[pair.first]} - {names[pair.second]}",
                f"{methods[0]} - {methods[1]}",
                _difference(pair),
                f"{pair.n:,}" if pair.n else "not the same images",
                str(pair.seeds) if pair.n else "-",
                f"{pair.p:.2g}" if pair.p is not None else "-",
            )
        )
    more = f" The first {PAIRS:,} of {len(pairs):,} pairs are shown." if len(pairs) > PAIRS else ""
    return [
        Table(
            caption="The recommended method of the first run minus that of the second: error (negative is better for the "
            "first), in multi-label data mAP. On the same test images the difference is paired: its 95 % interval is over "
            "images and shared seeds, and p is McNemar's exact test on the first seed. Where the images are not the same, "
            f"the brackets hold bounds from both intervals, true with 90 % or more. "
            f"Each pair is taken by itself: of 20 pairs without a difference one looks sure.{more}",
            headings=("runs", "methods", "difference", "paired test images", "seeds", "p"),
            rows=tuple(rows),
            filtered=True,
        )
    ]
