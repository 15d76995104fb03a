"""The page of a comparison of retention, from the records in its folder. Knows no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keepsight.core import Result
from keepsight.report.charts import Spot, Tradeoff, interval_chart, tradeoff_chart
from keepsight.report.page import Block, Chart, Page, Table, Text, sections
from keepsight.report.repeating import repeating
from keepsight.report.retention_answer import base_of, methods_of, retention_answer, verdict
from keepsight.report.retention_records import (
    MEAN,
    PLAIN,
    UNTOUCHED,
    read_cell_failures,
    read_compare_facts,
    read_compare_records,
)
from keepsight.report.retention_table import Figures, failed, retention_tables, sentences

HEADS = (("accuracy", "trained head"), ("refitted_accuracy", "refitted probe"))


def retention_page(folder: Path) -> Page:
    """The page.

    Raises:
        UserError: There are no records in the folder, or they are damaged.
    """
    facts, records, failures = read_compare_facts(folder), read_compare_records(folder), read_cell_failures(folder)
    figures, tables = Figures(records), retention_tables(facts, records)
    methods = methods_of(figures)
    said = [sentence for method in methods for sentence in verdict(figures, method).sentences]
    made: list[tuple[str, Sequence[Block | None]]] = [
        (method, _method(figures, method, tables)) for method in methods or [UNTOUCHED]
    ]
    lines = [*said, *sentences(facts, records)]
    found = [
        ("What can be said", [Text(text=line) for line in dict.fromkeys(lines)]),
        *made,
        ("Without a result", [Text(text=failed(failure)) for failure in failures]),
        ("Limitations", [Text(text=line) for line in _limitations(figures)]),
        ("Doing it again", repeating(folder, facts.version, facts.command, facts.config)),
    ]
    return Page(
        version=facts.version,
        kind="retention",
        title=f"Retention on {facts.task}",
        answer=retention_answer(figures),
        lead=tuple(_lead(figures, facts.sets)),
        sections=sections(found),
    )


def _lead(figures: Figures, sets: Sequence[str]) -> list[str]:
    if not figures.all:
        return []
    one = figures.all[0]
    seeds = max(r.seeds for r in figures.all)
    test = max((r.n for r in figures.all if r.split == "test"), default=0)
    suite = max((r.n for r in figures.all if r.dataset == MEAN), default=0)
    of_suite = f"{suite:,} images of {', '.join(sets)}" if suite else ", ".join(sets)
    return [
        f"{one.backbone}, readout {one.readout}; {one.labels} labels, {seeds} seed{'s' * (seeds != 1)}; n = {test:,} test images "
        f"of {figures.task}; other data: {of_suite}."
    ]


def _method(figures: Figures, method: str, tables: Sequence[Table]) -> list[Block | None]:
    best = verdict(figures, method).best
    kept, explained = (_rows_of(table, method, best) for table in tables)
    return [
        *(_tradeoffs(figures, method, metric, head) for metric, head in HEADS),
        _kept(figures, method, best),
        kept,
        _similarity(figures, method),
        explained,
    ]


def _rows_of(table: Table, method: str, best: str | None) -> Table:
    """The rows of one method, named by what was retained, and of the untouched backbone; the best variant is set off."""
    kept = [row for row in table.rows if row[0] in (method, UNTOUCHED)]
    rows = tuple((UNTOUCHED if row[0] == UNTOUCHED else _shown(row[1]), *row[2:]) for row in kept)
    marked = tuple(i for i, row in enumerate(kept) if best is not None and row[:2] == (method, best))
    caption = f"{table.caption} Set off: what keeps most without a sure loss on the task." if marked else table.caption
    return Table(
        title=table.title,
        caption=caption,
        headings=table.headings[1:],
        rows=rows,
        marked=marked,
        filtered=len(rows) > 12,
    )


def _tradeoffs(figures: Figures, method: str, metric: str, head: str) -> Chart | None:
    """Accuracy on the task against what other data lost; what differs in strength alone is joined by a line."""
    made = []
    groups = _groups(figures, method)
    for group, variants in groups.items():
        for variant in variants:
            x = figures.of((method, variant), metric, "test")
            y = figures.of((method, variant), "probe_accuracy_change", "suite", MEAN, UNTOUCHED)
            if x is not None and y is not None:
                made.append(Tradeoff(_shown(variant), *_hundredfold(x), *_hundredfold(y), _shown(group)))
    if not made:
        return None
    start = figures.of((UNTOUCHED, PLAIN), metric, "test")
    if start is not None:
        note = "the backbone before tuning"
        made.append(Tradeoff(UNTOUCHED, *_hundredfold(start), 0.0, None, None, UNTOUCHED, note))
    curves = [group for group, variants in groups.items() if len(variants) > 1]
    return tradeoff_chart(
        f"{method}, {head}: accuracy on the task against what other data lost",
        made,
        x_axis=f"accuracy on the task, {head}, %",
        y_axis="change of mean probe accuracy on other data, points",
        caption="To the right is better on the task, upwards is better on other data. Lines join what differs in strength alone: "
        "WiSE-FT's mixtures of the plain training's two ends (alpha), and one penalty at several weights. Thin lines are 95 % "
        "intervals. The same for documents in pareto.svg and pareto.png.",
        description=f"Each variant of {method}: accuracy on {figures.task} and change of mean accuracy elsewhere, with intervals.",
        connected=curves,
    )


def _hundredfold(r: Result) -> tuple[float, float, float]:
    """Value and interval in per cent or points."""
    return 100 * r.value, 100 * r.ci_low, 100 * r.ci_high


def _groups(figures: Figures, method: str) -> dict[str, list[str]]:
    """Variants of one method by their names without strength, in the order of the strengths."""
    found: dict[str, list[str]] = {}
    for of, variant in figures.rows:
        if of == method:
            found.setdefault(base_of(variant), []).append(variant)
    return {group: sorted(variants, key=_strength) for group, variants in found.items()}


def _strength(variant: str) -> float:
    """The number behind the first colon; 0 where there is none."""
    parts = variant.split(":")
    try:
        return float(parts[1])
    except (IndexError, ValueError):
        return 0.0


def _shown(variant: str) -> str:
    return "none (plain)" if variant == PLAIN else variant


def _kept(figures: Figures, method: str, best: str | None) -> Chart | None:
    """The share that was kept where it is defined, else the points."""
    variants = [variant for of, variant in figures.rows if of == method and variant != PLAIN]
    shares = [figures.of((method, v), "share_kept", "suite", MEAN, PLAIN) for v in variants]
    share = any(r is not None for r in shares)
    if not share:
        shares = [figures.of((method, v), "probe_accuracy_change", "suite", MEAN, PLAIN) for v in variants]
    spots = [Spot(variant, *_hundredfold(r)) for variant, r in zip(variants, shares, strict=True) if r is not None]
    if not spots:
        return None
    title = f"{method}: {'share of the loss that was kept' if share else 'what was kept'}"
    what = (
        "1 - loss / loss of plain training; 100 % is no loss at all, 0 % that of plain training"
        if share
        else "mean change of the probes on other data, minus that of plain training"
    )
    return interval_chart(
        title,
        spots,
        axis="share kept, %" if share else "kept, points",
        caption=f"{what[0].upper()}{what[1:]}. With 95 % intervals; with a ring what keeps most without a sure loss on the task.",
        description=f"{title}, a row each with its interval.",
        reference=100.0 if share else 0.0,
        marked=[] if best is None else [best],
    )


def _similarity(figures: Figures, method: str) -> Chart | None:
    spots = []
    for of, variant in figures.rows:
        row = of, variant
        cka, control = (figures.of(row, name, "suite", MEAN, UNTOUCHED) for name in ("cka", "cka_shuffled"))
        if of == method and cka is not None:
            known = cka.interval != "none"
            low, high = (cka.ci_low, cka.ci_high) if known else (None, None)
            note = "" if control is None else f"control with shuffled images {control.value:+.3f}"
            spots.append(Spot(_shown(variant), cka.value, low, high, note=note))
    if not spots:
        return None
    return interval_chart(
        f"{method}: similarity of the readout to the untouched one",
        spots,
        axis="CKA, mean of the suite",
        caption="Debiased linear CKA, 1 where nothing changed but a rotation and a scale; its control with shuffled images stands "
        "in the table. It explains and proves nothing, and is circular for what was trained to keep it.",
        description="CKA of each variant with the untouched backbone.",
        reference=1.0,
    )


def _limitations(figures: Figures) -> list[str]:
    seeds = max((r.seeds for r in figures.all), default=0)
    said = []
    if seeds == 1:
        said.append(
            "One seed: the intervals cover images and not the chance of the training and of the labelled images; --seeds 3 would."
        )
    said.append(
        "Every variant has the weight it was given: nothing was chosen on test images or on the suite, and another weight may do "
        "better."
    )
    said.append(
        "Variants are compared with plain training in pairs. Between two variants only their intervals are compared, which misses "
        "small differences; of many comparisons some look sure by chance."
    )
    return said
