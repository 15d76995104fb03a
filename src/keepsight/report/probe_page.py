"""The page of a run of probes, from the records in its folder, and its sections for other pages. Knows no HTML and no probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keepsight.core import Result
from keepsight.core.result import read_results
from keepsight.report.charts import Spot, interval_chart
from keepsight.report.galleries import read_galleries
from keepsight.report.page import Block, Chart, Page, Text, sections
from keepsight.report.probes import (
    CHANGE,
    RESULTS,
    ProbeFacts,
    cell,
    figure_name,
    lead_lines,
    probe_tables,
    read_probe_facts,
)
from keepsight.report.repeating import repeating


def probe_page(folder: Path) -> Page:
    """The page.

    Raises:
        UserError: There is no run of probes in the folder, or a record is damaged.
    """
    facts, results = read_probe_facts(folder), read_results(folder / RESULTS)
    found: list[tuple[str, Sequence[Block | None]]] = [
        *probe_sections(folder),
        ("Limitations", [Text(text=line) for line in limitations(facts, results)]),
        ("Doing it again", repeating(folder, facts.version, facts.command, facts.config)),
    ]
    return Page(
        version=facts.version,
        kind="probe",
        title=f"Probes of {facts.model}",
        answer=answer(facts, results),
        lead=tuple(lead_lines(facts)),
        sections=sections(found),
    )


def probe_sections(folder: Path) -> list[tuple[str, list[Block]]]:
    """What was found and what was left out, as sections: figures with differences, test items, where networks look.

    Raises:
        UserError: There is no run of probes in the folder, or a record is damaged.
    """
    facts, results = read_probe_facts(folder), read_results(folder / RESULTS)
    galleries = read_galleries(folder) or ()
    chart = change_chart(results) if facts.other is not None else value_chart(results)
    figures: list[Block] = [Text(text=note) for note in facts.notes]
    figures += [block for block in (chart, *probe_tables(facts, results)) if block is not None]
    made: list[tuple[str, list[Block]]] = [("Probes before and after" if facts.other else "Probes", figures)]
    for kind, title in (("examples", "Test items of the probes"), ("attention", "Where the networks look")):
        blocks: list[Block] = [gallery.pictures for gallery in galleries if gallery.kind == kind]
        if blocks:
            made.append((title, blocks))
    return made


def answer(facts: ProbeFacts, results: Sequence[Result]) -> str:
    """On how many figures the network is surely better or worse, and the largest change, in a sentence."""
    if facts.other is None:
        figures = [r for r in results if not r.detail and np.isfinite(r.value)]
        known = [r for r in figures if r.chance is not None]
        above = sum(_above_chance(r) for r in known)
        return (
            f"{facts.model} is surely better than guessing on {above} of {len(known)} figures of the probes; it was compared with "
            "no other network."
        )
    changes = _changes(results)
    if not changes:
        return f"No figure of {facts.model} can be compared with {facts.other}."
    better, worse = sum(r.ci_low > 0 for r in changes), sum(r.ci_high < 0 for r in changes)
    unsure = len(changes) - better - worse
    largest = max(changes, key=lambda r: abs(r.value))
    versus = f"than {facts.other}" if facts.against != "untouched" else "than before the tuning"
    said = (
        f"Of {len(changes)} figures of the probes {facts.model} is surely better {versus} on {better} and surely worse on {worse}, "
        f"and {unsure} cannot be told apart"
    )
    if largest.value == 0:
        return f"{said}; none changed at all."
    way = "gain" if largest.value > 0 else "loss"
    original = next(r for r in results if _key(r) == _key(largest))
    return f"{said}; the largest {way} is in {_name(original)}: {cell(original, signed=True)} points."


def limitations(facts: ProbeFacts, results: Sequence[Result]) -> list[str]:
    """What the numbers themselves say against leaning on them."""
    said = []
    figures = [r for r in results if not r.detail and r.metric.endswith(CHANGE)]
    shown = figures or [r for r in results if not r.detail]
    alone = sum(r.seeds == 1 for r in shown)
    if alone:
        said.append(f"{alone} of {len(shown)} figures are of one seed: their intervals are over test items alone.")
    small = [r for r in shown if r.n < 200]
    if small:
        least = min(small, key=lambda r: r.n)
        said.append(
            f"{len(small)} figures have fewer than 200 test items (the least, {_name(least)}, has {least.n:,}): only large "
            "differences can be seen there."
        )
    if len(figures) >= 10:
        said.append(
            f"{len(figures)} differences have an interval: if none of them were real, about {max(1, round(len(figures) / 20))} "
            "would seem to be."
        )
    if facts.other is not None and facts.against == "untouched":
        said.append("The tuned network is one tuning with one seed: another one may keep or lose other things.")
    return said


def change_chart(results: Sequence[Result]) -> Chart | None:
    """Differences in points, the better to the right; None where nothing can be compared."""
    changes = _changes(results)
    if not changes:
        return None
    worse = [_name(r) for r in changes if r.ci_high < 0]
    spots = [
        Spot(
            _name(r),
            100 * r.value,
            100 * r.ci_low,
            100 * r.ci_high,
            note=f"n = {r.n:,}"
            + (", drawn with its sign turned, since lower is better" if r.better == "lower" else ""),
        )
        for r in changes
    ]
    return interval_chart(
        "What changed",
        spots,
        axis="points better",
        caption="After minus before, with 95 % intervals over test items (and seeds, where there are several); to the right is "
        "better, also for error rates. A ring marks what is surely worse.",
        description="The difference of each figure between both networks with its interval; zero is no difference.",
        reference=0.0,
        marked=worse,
    )


def value_chart(results: Sequence[Result]) -> Chart | None:
    """The figures of one network alone."""
    figures = [r for r in results if not r.detail and np.isfinite((r.value, r.ci_low, r.ci_high)).all()]
    if not figures:
        return None
    spots = [
        Spot(
            _name(r) + (" (lower is better)" if r.better == "lower" else ""),
            100 * r.value,
            100 * r.ci_low,
            100 * r.ci_high,
            note=f"n = {r.n:,}" + ("" if r.chance is None else f", chance {100 * r.chance:.1f}"),
        )
        for r in figures
    ]
    return interval_chart(
        "What was found",
        spots,
        axis="per cent",
        caption="With 95 % intervals over test items (and seeds, where there are several).",
        description="Each figure of the network with its interval.",
    )


def _changes(results: Sequence[Result]) -> list[Result]:
    """Headline differences, turned so that above zero is better."""
    found = [
        r
        for r in results
        if r.metric.endswith(CHANGE) and not r.detail and np.isfinite((r.value, r.ci_low, r.ci_high)).all()
    ]
    return [
        r.model_copy(update={"value": -r.value, "ci_low": -r.ci_high, "ci_high": -r.ci_low})
        if r.better == "lower"
        else r
        for r in found
    ]


def _above_chance(r: Result) -> bool:
    chance = r.chance or 0.0
    return r.ci_high < chance if r.better == "lower" else r.ci_low > chance


def _key(r: Result) -> tuple[str, str, str]:
    return r.method, r.dataset, r.metric


def _name(r: Result) -> str:
    return f"{r.method}: {figure_name(r)}, {r.dataset}"
