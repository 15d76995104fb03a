"""The rungs of a comparison on its page and in a terminal, from ladder.json alone."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from keepsight.report.charts import Curve, CurvePoint, curves_chart
from keepsight.report.ladder_records import (
    LadderCandidate,
    LadderFigure,
    LadderRecord,
    Rung,
    Standing,
    read_ladder,
)
from keepsight.report.page import Block, Chart, Table, Text

_NAMES = {"error": "error", "mean_average_precision": "mAP"}


def ladder_blocks(folder: Path) -> list[Block]:
    """What a comparison's page says of its rungs.

    Raises:
        UserError: There is no ladder.json, or it is damaged.
    """
    record = read_ladder(folder)
    chart = _chart(record)
    made: list[Block] = [Text(text=_about(record))]
    made += [Text(text=note) for note in record.notes]
    made += [] if chart is None else [chart]
    made += [_table(record), _reasons(record), Text(text=record.rule)]
    return made


def print_ladder(folder: Path, out: Console) -> None:
    """The table in a terminal."""
    record = read_ladder(folder)
    table = _table(record)
    shown = RichTable(title=escape(_about(record)), title_justify="left", title_style="", header_style="bold")
    for i, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in table.rows:
        shown.add_row(*(escape(text.partition(" [")[0]) for text in row))
    out.print(shown)


def _about(record: LadderRecord) -> str:
    """One paragraph: how many candidates, how they ended, time."""
    fates = [c.fate for c in record.candidates]
    parts = [
        f"{fates.count(fate)} {words}"
        for fate, words in (
            ("measured", "measured on test"),
            ("stopped", "stopped, since they could not win"),
            ("not begun", "not tried to the end for want of time"),
            ("failed", "without a result"),
        )
        if fate in fates
    ]
    listed = f": {', '.join(parts)}" if parts else ""
    time = f"{_time(record.used)} used" + (f" of {_time(record.budget)}" if record.budget is not None else "")
    limit = (
        f" At most {record.limit:g} points of mean probe accuracy on other data may be lost."
        if record.limit is not None
        else ""
    )
    return f"{len(record.candidates)} candidates{listed}; {time}.{limit}"


def _rungs(record: LadderRecord) -> list[Rung]:
    """Those on which something is compared."""
    return [rung for rung in record.rungs if rung.images]


def _table(record: LadderRecord) -> Table:
    rungs = _rungs(record)
    name = _NAMES[record.metric]
    losses = any(c.loss is not None for c in record.candidates)
    headings = [
        "candidate",
        *(f"{rung.name}: {name} %" for rung in rungs),
        "seconds a fit",
        *(("points lost",) if losses else ()),
        "ended",
    ]
    rows = [
        (
            candidate.name if candidate.alpha is None else f"{candidate.name} (alpha {candidate.alpha:g})",
            *(_figure(standing_of(rung, candidate.name)) for rung in rungs),
            _seconds(record, candidate),
            *((_loss(candidate),) if losses else ()),
            candidate.fate,
        )
        for candidate in record.candidates
    ]
    sizes = "; ".join(
        f"{rung.name}: {rung.images} held-out images in {rung.folds} part{'s' if rung.folds > 1 else ''}, "
        f"{_share(rung.share)} of the epochs"
        for rung in rungs
    )
    lost = " Points lost: of mean probe accuracy, on the half of the suite that choices are made on." if losses else ""
    return Table(
        title="Rungs",
        caption=f"{_capital(name)} in % with its 95 % bootstrap interval over the images held out ({record.held_out}). "
        f"{sizes}.{lost}",
        headings=tuple(headings),
        rows=tuple(rows),
    )


def _reasons(record: LadderRecord) -> Table:
    """In a table of their own: sentences beside many figures would make every row tall."""
    return Table(
        title="Why each candidate ended where it did",
        headings=("candidate", "ended", "rung", "why"),
        rows=tuple((c.name, c.fate, c.rung, c.why) for c in record.candidates),
    )


def standing_of(rung: Rung, name: str) -> Standing | None:
    """Of a candidate; None where it was not in this rung."""
    return next((s for s in rung.standings if s.candidate == name), None)


def _figure(standing: Standing | None) -> str:
    if standing is None:
        return ""
    if standing.figure is None:
        return standing.decision
    f: LadderFigure = standing.figure
    return f"{100 * f.value:.1f} [{100 * f.low:.1f}, {100 * f.high:.1f}]"


def _seconds(record: LadderRecord, candidate: LadderCandidate) -> str:
    """Of one fit in the last rung that it finished."""
    found = ""
    for rung in record.rungs:
        standing = standing_of(rung, candidate.name)
        if standing is not None and standing.seconds > 0 and rung.folds:
            found = f"{standing.seconds / rung.folds:.1f}"
    return found


def _loss(candidate: LadderCandidate) -> str:
    if candidate.loss is None:
        return ""
    return f"{candidate.loss:.1f}{'' if candidate.within else ', too many'}"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _share(share: float) -> str:
    return "all" if share == 1 else f"1/{round(1 / share)}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _chart(record: LadderRecord) -> Chart | None:
    """Figures against the seconds of a fit, a line a candidate."""
    name = _NAMES[record.metric]
    curves = []
    for candidate in record.candidates:
        points = []
        for rung in _rungs(record):
            standing = standing_of(rung, candidate.name)
            if standing is None or standing.figure is None or standing.seconds <= 0:
                continue
            f = standing.figure
            note = f"{rung.name}, n = {f.n}: {standing.decision}"
            points.append(CurvePoint(standing.seconds / rung.folds, 100 * f.value, 100 * f.low, 100 * f.high, note))
        if points:
            curves.append(Curve(candidate.name, tuple(points)))
    if not curves:
        return None
    return curves_chart(
        "What a longer training bought",
        curves,
        x_axis="seconds a fit",
        y_axis=f"held-out {name}, %",
        caption=f"{_capital(name)} on held-out labelled images ({record.held_out}) against the seconds of one fit; a point a rung, "
        "longer trainings to the right; the bands are 95 % bootstrap intervals. The images of the rungs differ in number.",
        description=f"Lines of {len(curves)} candidates: the held-out {name} at each rung against the seconds that a fit took.",
        log_x=True,
    )
