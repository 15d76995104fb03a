"""The page of a sweep over label counts, from the records in its folder. Knows no HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from keepsight.report.charts import Curve, CurvePoint, curves_chart
from keepsight.report.page import Block, Chart, Page, Table, Text, sections
from keepsight.report.repeating import repeating
from keepsight.report.sweep_answer import place_sentences, sweep_answer
from keepsight.report.sweep_figure import paper_methods
from keepsight.report.sweep_records import read_facts, read_failures, read_records
from keepsight.report.sweep_table import SweepTable, tables

CROWDED = 6
"""Lines, at most, of which none is drawn in a chart of its own, too."""

_INTERVALS = (
    "Intervals of errors are 95 % intervals over seeds and test images together; those of differences are 95 % t intervals over "
    "seeds, paired: both methods of a difference learnt from the same labelled images and were tested on the same ones."
)


def sweep_page(folder: Path, against: str | None = None) -> Page:
    """The page.

    Args:
        folder: Of the sweep.
        against: The method that the others are compared with; by default what the sweep was started with.

    Raises:
        UserError: There are no records, or they are damaged.
    """
    facts = read_facts(folder)
    found = tables(read_records(folder), read_failures(folder), facts)
    sets = ", ".join(dict.fromkeys(table.place.dataset for table in found))
    models = "; ".join(dict.fromkeys(table.place.model for table in found))
    seeds = sorted({r.seed for table in found for r in table.records if r.seed is not None})
    listed = f"{len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))})"
    made: list[tuple[str, Sequence[Block | None]]] = [
        (f"{table.place.dataset}, {table.place.model}", _place(table, against or facts.against)) for table in found
    ]
    return Page(
        version=facts.version,
        kind="sweep",
        title="Error by number of labels",
        answer=sweep_answer(found),
        lead=(f"{sets}; {models}; {listed}.", *place_sentences(found)),
        sections=sections(
            [
                *made,
                ("Limitations", [Text(text=line) for line in _limitations(found)]),
                ("Doing it again", repeating(folder, facts.version, facts.command, facts.config)),
            ]
        ),
    )


def _place(table: SweepTable, against: str | None) -> list[Block | None]:
    paper = paper_methods(table.methods)
    several = len(table.methods) > 1
    return [
        _curves(table, paper, "supervised methods and content-style")
        if paper and len(table.methods) > CROWDED
        else None,
        _curves(table, table.methods, "all methods"),
        _errors(table),
        _differences(table, against) if several else None,
        _seconds(table),
        *(Text(text=f"Failed: {f.method}, {f.labels} labels, seed {f.seed}: {f.sentence}") for f in table.failures),
    ]


def _curves(table: SweepTable, methods: Sequence[str], which: str) -> Chart | None:
    """Error against the number of labels; None where nothing has a result."""
    curves = []
    for method in methods:
        points = tuple(
            CurvePoint(
                r.labels,
                100 * r.value,
                100 * r.ci_low,
                100 * r.ci_high,
                note=f"{table.facts.families[method]}, {r.seeds} seed{'s' * (r.seeds != 1)}",
            )
            for labels in table.labels
            if (r := table.summary(method, labels)) is not None
        )
        if points:
            curves.append(Curve(method, points))
    if not curves:
        return None
    kinds = (
        f"{name}: {', '.join(m for m in of if m in methods)}" for name, of in table.families() if set(of) & set(methods)
    )
    return curves_chart(
        f"Test error against the number of labelled images, {which}",
        curves,
        x_axis="labelled images",
        y_axis="test error, %",
        caption=f"{table.place.dataset}: means over {table.seeds} seed{'s' * (table.seeds != 1)}, n = {table.n:,} test images; "
        f"bands are 95 % intervals over seeds and images. {'; '.join(kinds)}.",
        description=f"A line a method: test error in per cent on {table.place.dataset}, by the number of labelled images.",
        log_x=True,
    )


def _errors(table: SweepTable) -> Table:
    def text(method: str, labels: int) -> str:
        error, failed = table.error_text(method, labels)[0], table.failed_text(method, labels)
        return f"{error}, {failed}" if failed else error

    least = [table.best(labels) or "-" for labels in table.labels]
    made = _by_method(
        table, "Test error, %", f"{table.caption().partition(' Seconds:')[0]} The last row names the least.", text
    )
    return made.model_copy(update={"rows": (*made.rows, ("least error", "", *least)), "marked": (len(made.rows),)})


def _differences(table: SweepTable, against: str | None) -> Table:
    return _by_method(
        table,
        "Differences in points",
        table.difference_caption(against),
        lambda method, labels: table.difference_text(method, labels, against),
    )


def _seconds(table: SweepTable) -> Table:
    def text(method: str, labels: int) -> str:
        found = table.summary(method, labels)
        return "-" if found is None else f"{found.seconds:,.1f}"

    caption = "Fitting and predicting one seed, mean over seeds, without the features, which are computed once."
    return _by_method(table, "Seconds", caption, text)


def _by_method(table: SweepTable, title: str, caption: str, text: Callable[[str, int], str]) -> Table:
    """A row a method, a column a number of labels."""
    rows = [
        (method, family, *(text(method, labels) for labels in table.labels))
        for family, methods in table.families()
        for method in methods
    ]
    return Table(
        title=title,
        caption=caption,
        headings=("method", "backbone", *(f"{labels:,} labels" for labels in table.labels)),
        rows=tuple(rows),
    )


def _limitations(found: Sequence[SweepTable]) -> list[str]:
    seeds = min((table.seeds for table in found), default=0)
    said = [
        _INTERVALS,
        "No choice was made on test images, except where a caption says so. What errs least is read from the test images: the best "
        "of several looks a little better than it is. So does the strongest frozen method, which trained "
        "networks are compared with.",
        "Each interval is taken alone, without correction for the number of comparisons.",
    ]
    if seeds < 2:
        said.append("One seed says nothing about another draw of labelled images: --seeds 5 would.")
    elif seeds < 4:
        said.append(f"{seeds} seeds make wide t intervals: what they do not show may still be there.")
    return said
