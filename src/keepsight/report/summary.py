"""The rows of the summary table, from `Result` records. Knows no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keepsight.core import Result


@dataclass(frozen=True, slots=True)
class Row:
    """One method: figures as text, and the numbers a picture needs (fractions; None where nothing was measured)."""

    method: str
    error: str
    cross_validation: str
    selection: str
    parameters: str
    seconds: str
    peak: str
    value: float | None
    low: float | None
    high: float | None


MAP = "mean_average_precision"
"""The metric that multi-label data is compared by; other data by the error."""


def main_metric(results: Sequence[Result]) -> str:
    """What methods are compared by in these records."""
    return MAP if any(r.metric == MAP for r in results) else "error"


def main_name(results: Sequence[Result]) -> str:
    """The same in words."""
    return "mAP" if main_metric(results) == MAP else "error"


def headings(results: Sequence[Result]) -> tuple[str, ...]:
    """Of the columns of the summary table."""
    name = main_name(results)
    return (
        "method",
        f"test {name} % [95 % interval]",
        f"cross-validated {name} %",
        "weights",
        "trained parameters",
        "seconds",
        "peak MiB",
    )


def is_of_class(metric: str) -> bool:
    """Whether a metric is one class's average precision, ap(CLASS)."""
    return metric.startswith("ap(")


def percent(value: float) -> str:
    """A fraction as per cent with one decimal."""
    return f"{100 * value:.1f}"


def rows(results: Sequence[Result]) -> list[Row]:
    """One row a method, in the order of the records: the summary of its test error (or mAP), its cross-validated one, its cost."""
    metric = main_metric(results)
    methods = list(dict.fromkeys(r.method for r in results))
    made = []
    for method in methods:
        figures = [r for r in results if r.method == method and r.metric == metric]
        test = next((r for r in figures if r.split == "test" and r.seed is None), None)
        cv = next((r for r in figures if r.split == "cross-validation"), None)
        any_one = test or cv
        if any_one is None:
            continue
        made.append(
            Row(
                method=method,
                error=f"{percent(test.value)} [{percent(test.ci_low)}, {percent(test.ci_high)}]"
                if test
                else "not measured",
                cross_validation=f"{percent(cv.value)} [{percent(cv.ci_low)}, {percent(cv.ci_high)}]" if cv else "-",
                selection=any_one.selection,
                parameters=f"{any_one.trainable_parameters:,}",
                seconds=f"{any_one.seconds:.1f}",
                peak=f"{any_one.peak_mib:,.0f}",
                value=test.value if test else None,
                low=test.ci_low if test else None,
                high=test.ci_high if test else None,
            )
        )
    return made


def cells(row: Row) -> tuple[str, ...]:
    """The row in the order of `headings`."""
    return (row.method, row.error, row.cross_validation, row.selection, row.parameters, row.seconds, row.peak)


def caption(results: Sequence[Result]) -> str:
    """One sentence that says what was measured: data, backbone, readout, n, labels, seeds."""
    if not results:
        return "nothing was measured: there are no test images, and too few labels for a cross-validation"
    tests = [r for r in results if r.split == "test" and r.seed is None]
    r = (tests or list(results))[0]
    seeds = f"{r.seeds} seed{'s' if r.seeds != 1 else ''}"
    covers = "seeds and bootstrap over images" if r.interval == "seeds+bootstrap" else "bootstrap over images"
    measured = f"n = {r.n:,} test images, {seeds}; intervals: {covers}" if tests else "no test images"
    return f"{r.dataset}, {r.labels} labels, {r.backbone}, readout {r.readout}; {measured}"
