"""The tables of a comparison of retention and the sentences about them, from its records. Knows no file and no page."""

from __future__ import annotations

from collections.abc import Sequence

from keepsight.core import Result
from keepsight.report.page import Table
from keepsight.report.retention_records import MEAN, PLAIN, SHARE_OF_SEED, UNTOUCHED, CellFailure, CompareFacts


class Figures:
    """The records of a comparison by what they say."""

    def __init__(self, records: Sequence[Result]) -> None:
        self._by = {(r.method, r.retain, r.metric, r.split, r.dataset, r.against): r for r in records}
        self.all = tuple(records)
        self.task = next((r.dataset for r in records if r.split == "test"), "")
        self.rows = list(dict.fromkeys((r.method, r.retain or "") for r in records))

    def of(
        self, row: tuple[str, str], metric: str, split: str, dataset: str = "", against: str | None = None
    ) -> Result | None:
        """One record, or None."""
        return self._by.get((*row, metric, split, dataset or self.task, against))

    def of_seeds(self, row: tuple[str, str]) -> list[Result]:
        """The share that each seed kept, where there are several."""
        return [r for r in self.all if (r.method, r.retain, r.metric) == (*row, SHARE_OF_SEED)]


def sentences(facts: CompareFacts, records: Sequence[Result]) -> list[str]:
    """What plain training did with each method, whether there is a share to keep, and what was left out."""
    figures, said = Figures(records), []
    for method in dict.fromkeys(method for method, _ in figures.rows if method != UNTOUCHED):
        row = (method, PLAIN)
        gain = figures.of(row, "refitted_accuracy_change", "test", against=UNTOUCHED)
        loss = figures.of(row, "probe_accuracy_change", "suite", MEAN, UNTOUCHED)
        if gain is None or loss is None:
            said.append(f"{method} without retention has no result: nothing can be compared with it.")
            continue
        said.append(
            f"{method} without retention changes the accuracy of a refitted probe on {figures.task} by {points(gain)} points, and "
            f"the suite's mean by {points(loss)}."
        )
        if loss.ci_high >= 0:
            said.append(
                f"{method} without retention lost nothing on the suite that is surely more than zero: the share kept is "
                f"undefined, and points alone are compared."
            )
    return [*said, *facts.notes]


def retention_tables(facts: CompareFacts, records: Sequence[Result]) -> list[Table]:
    """The two tables: what was learnt and kept, and what explains it and what it costs."""
    figures = Figures(records)
    return [_kept(figures, facts), _explained(figures)]


def _kept(figures: Figures, facts: CompareFacts) -> Table:
    rows = []
    seeds = max((r.seeds for r in figures.all), default=0)
    for row in figures.rows:
        sets = [figures.of(row, "probe_accuracy_change", "suite", name, UNTOUCHED) for name in (*facts.sets, MEAN)]
        share = figures.of(row, "share_kept", "suite", MEAN, PLAIN)
        rows.append(
            (
                *row,
                percent(figures.of(row, "accuracy", "test")),
                percent(figures.of(row, "refitted_accuracy", "test")),
                *(points(record) for record in sets),
                points(figures.of(row, "probe_accuracy_change", "suite", MEAN, PLAIN)),
                percent(share, 0),
                *((", ".join(f"{100 * r.value:.0f}" for r in figures.of_seeds(row)) or "-",) if seeds > 1 else ()),
            )
        )
    kind = (
        "resample images, the same ones on both sides of every difference"
        if seeds < 2
        else f"cover {seeds} seeds and images, paired: a difference has the same labels and test images on both sides"
    )
    heading = f"What was learnt on {figures.task}, and what other data lost"
    text = (
        f"Accuracy on the task in per cent, of the head that was trained and of a probe refitted to the tuned features. Then, in "
        f"points, the change of the cross-fitted linear probe on data that was not trained on, from the untouched backbone; 'kept' "
        f"is the difference of its mean from plain training, and the share is 1 - loss / loss of plain training. All with 95 % "
        f"intervals, which {kind}. Nothing was chosen on these data."
    )
    header = [
        "method",
        "retain",
        "trained head %",
        "refitted probe %",
        *facts.sets,
        MEAN,
        "kept, points",
        "share kept %",
        *(("of each seed %",) if seeds > 1 else ()),
    ]
    return Table(title=heading, caption=text, headings=tuple(header), rows=tuple(rows))


def _explained(figures: Figures) -> Table:
    rows = []
    for row in figures.rows:
        cka, control = (figures.of(row, name, "suite", MEAN, UNTOUCHED) for name in ("cka", "cka_shuffled"))
        distance = figures.of(row, "weight_distance", "training")
        plain = (row[0], PLAIN)
        rows.append(
            (
                *row,
                points(figures.of(row, "accuracy_change", "test", against=PLAIN)),
                points(figures.of(row, "refitted_accuracy_change", "test", against=PLAIN)),
                points(figures.of(row, "knn_accuracy_change", "suite", MEAN, UNTOUCHED)),
                "-" if cka is None or control is None else f"{_with_seeds(cka)} ({control.value:+.3f})",
                "-" if distance is None else f"{distance.value:.1e}",
                percent(figures.of(row, "ece", "test")),
                points(figures.of(row, "probe_ece_change", "suite", MEAN, UNTOUCHED)),
                _cost(figures.of(row, "step_seconds", "training"), figures.of(plain, "step_seconds", "training"), 1000),
                _cost(figures.of(row, "peak_mib", "training"), figures.of(plain, "peak_mib", "training"), 1),
            )
        )
    text = (
        "Accuracy against plain training, of both heads. k-NN on the suite, mean change from the untouched backbone. CKA of the "
        "readout with the untouched one (debiased, mean of the suite; in brackets the control with shuffled images): it explains "
        "and proves nothing, and is circular for what was trained to keep it. Weights: ||W - W0|| / ||W0||. Calibration error of "
        "the trained head on the task, and the change of that of the probes on the suite. Seconds: the median over steps of the "
        "wall time between their ends, with loading. Memory: the largest resident memory of the process during the fit, sampled; "
        "what earlier fits left in it counts, so it is rough. In brackets the ratio to plain training."
    )
    header = [
        "method",
        "retain",
        "trained head, points",
        "refitted probe, points",
        "k-NN, points",
        "CKA (control)",
        "weights",
        "ECE %",
        "suite's ECE, points",
        "ms a step",
        "peak MiB",
    ]
    return Table(title="What explains it, and what it costs", caption=text, headings=tuple(header), rows=tuple(rows))


def percent(r: Result | None, digits: int = 1) -> str:
    """Per cent with the interval; a dash for None."""
    if r is None:
        return "-"
    value, low, high = (f"{round(100 * v, digits) + 0.0:.{digits}f}" for v in (r.value, r.ci_low, r.ci_high))
    return f"{value} [{low}, {high}]"


def points(r: Result | None) -> str:
    """Points of per cent with their sign and interval; a dash for None."""
    if r is None:
        return "-"
    value, low, high = (f"{round(100 * v, 1) + 0.0:+.1f}" for v in (r.value, r.ci_low, r.ci_high))
    return f"{value} [{low}, {high}]"


def _with_seeds(r: Result) -> str:
    return f"{r.value:.3f}" if r.interval == "none" else f"{r.value:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]"


def _cost(r: Result | None, plain: Result | None, scale: float) -> str:
    if r is None:
        return "-"
    ratio = f" ({r.value / plain.value:.2f}x)" if plain is not None and plain.value > 0 else ""
    return f"{scale * r.value:,.0f}{ratio}"


def failed(failure: CellFailure) -> str:
    """The sentence of a cell without a result."""
    return f"Failed: {failure.method}, {failure.retain}, seed {failure.seed}: {failure.sentence}"
