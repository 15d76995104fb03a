"""The page of a run of ViSFT, from the records in its folder. Knows no HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keepsight.core import Result
from keepsight.core.result import read_results
from keepsight.report.galleries import read_galleries
from keepsight.report.page import Block, Page, Pictures, Table, Text, picture, sections
from keepsight.report.repeating import repeating
from keepsight.report.scene_examples import SAID as EXAMPLES_SAID
from keepsight.report.scene_examples import sheet_file
from keepsight.report.scene_records import read_precision
from keepsight.report.visft import (
    RESULTS,
    SAID,
    VisftFacts,
    cell,
    is_tuned,
    ladder_table,
    lead_lines,
    part_tables,
    read_choice,
    read_visft_facts,
)
from keepsight.report.visft_charts import change_chart, class_blocks, ladder_charts, training_charts

MAIN = ("box_ap50", "mask_ap50", "bleu4")
"""The figure of each task that is spoken of first."""

SHEET = 1100
"""Longer side of a sheet on the page, px: for runs that kept no single pictures."""


def visft_page(folder: Path) -> Page:
    """The page.

    Raises:
        UserError: There is no run of ViSFT in the folder, or a record is damaged.
    """
    facts, results, choice = read_visft_facts(folder), read_results(folder / RESULTS), read_choice(folder)
    precision = read_precision(folder)
    tests = tests_of(results)
    of_classes = [part for part in precision.parts if part.part in tests] if precision else []
    ladder: list[Block] = [] if choice is None else [*ladder_charts(choice), ladder_table(choice)]
    found: list[tuple[str, Sequence[Block | None]]] = [
        ("Before and after", [change_chart(results), *part_tables(results)]),
        ("Checkpoints of stage 2", ladder),
        ("Each class", [block for part in of_classes for block in class_blocks(part)]),
        ("Answers on pictures", _answers(folder, facts)),
        ("How the heads were trained", training_charts(folder)),
        ("Data", [_data(facts)]),
        ("Limitations", [Text(text=line) for line in limitations(results, choice)]),
        ("Doing it again", repeating(folder, facts.version, facts.command, facts.config)),
    ]
    return Page(
        version=facts.version,
        kind="visft",
        title=f"ViSFT on {facts.data}",
        answer=answer(results, choice),
        lead=(_backbone(results), *lead_lines(facts, choice)),
        sections=sections(found),
    )


def tests_of(results: Sequence[Result]) -> tuple[str, ...]:
    """Names of the test parts; of all parts where there is none."""
    parts = tuple(dict.fromkeys(r.split for r in results))
    return tuple(part for part in parts if part.startswith("test")) or parts


def answer(results: Sequence[Result], choice: Mapping[str, Any] | None) -> str:
    """What stage 2 was worth, in a sentence: on the tests, on other data, at which cost."""
    tests = tests_of(results)
    heads = sum({r.task: r.seconds for r in results if not is_tuned(r)}.values())
    if choice is None:
        found = [r for r in results if r.split == tests[0] and not is_tuned(r) and r.metric in MAIN]
        said = ", ".join(f"{_spoken(r)} {cell(r)}" for r in found)
        n = max((r.n for r in found), default=0)
        return (
            f"On the frozen backbone the heads reach {said} per cent on {tests[0]} (n = {n:,}), after {_time(heads)} of training; "
            "the backbone was not tuned."
        )
    cost = f"stage 2 took {_time(choice['seconds'])}, after {_time(heads)} for the heads"
    if choice["step"] == 0:
        return (
            "Stage 2 gained nothing: on validation images no checkpoint was better than the untouched backbone, which was kept; "
            f"{cost}."
        )
    changes = [
        r for r in results if is_tuned(r) and r.split in tests and r.metric in {f"{metric}_change" for metric in MAIN}
    ]
    figures = ", ".join(f"{_spoken(r)} {cell(r, signed=True)}" for r in changes if r.split == tests[0])
    where = f": {figures} points on {tests[0]} (n = {changes[0].n:,})" if figures else ""
    return f"{_verdict(changes)}{where}; {_elsewhere(choice)}; {cost}."


def _spoken(r: Result) -> str:
    return SAID[r.metric.removesuffix("_change")].replace(",", "")


def _verdict(changes: Sequence[Result]) -> str:
    """In words, over all tests; captions have no paired interval and no say."""
    better, worse = sum(r.ci_low > 0 for r in changes), sum(r.ci_high < 0 for r in changes)
    if not changes:
        return "What stage 2 changed in captions has no paired interval"
    if better and worse:
        return f"Stage 2 gained on {better} and lost on {worse} of {len(changes)} figures of the tests"
    if better or worse:
        return f"Stage 2 {'gained' if better else 'lost'} on {better or worse} of {len(changes)} figures of the tests"
    return "Stage 2 changed nothing on its tasks that can be told from zero"


def _elsewhere(choice: Mapping[str, Any]) -> str:
    gained = next((rung["probes"] for rung in choice["rungs"] if rung["step"] == choice["step"]), None)
    if gained is None:
        return "other data were not looked at, which keepsight probe does"
    said = f"linear probes of other data {'gained' if gained >= 0 else 'lost'} {abs(gained):.1f} points"
    if choice["rule"] == "probes":
        return f"{said} on the half that chose the checkpoint, which proves nothing yet (keepsight probe measures the rest)"
    return f"{said}, without an interval (keepsight probe measures with one)"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _backbone(results: Sequence[Result]) -> str:
    if not results:
        return "Nothing was measured."
    one = results[0]
    size = f", {one.size} px" if one.size else ""
    return f"Backbone {one.backbone}, blocks {one.readout.partition(':')[0]}{size}."


def _answers(folder: Path, facts: VisftFacts) -> list[Block]:
    """The gallery, or the sheets in runs that kept none."""
    galleries = read_galleries(folder)
    if galleries is not None:
        return [gallery.pictures for gallery in galleries]
    made: list[Block] = []
    for part in facts.images:
        file = sheet_file(folder, part)
        if file.is_file():
            with Image.open(file) as image:
                shown = picture(image, f"The first images of {part} with the answers drawn on them", longest=SHEET)
            made.append(Pictures(title=part, caption=EXAMPLES_SAID, pictures=(shown,), width=SHEET))
    return made


def _data(facts: VisftFacts) -> Table:
    rows = tuple((part, f"{count:,}") for part, count in facts.images.items())
    said = (
        f"{len(facts.classes)} categories: {', '.join(facts.classes[:40])}{', ...' if len(facts.classes) > 40 else ''}."
    )
    return Table(title=facts.data, caption=said, headings=("part", "images"), rows=rows)


def limitations(results: Sequence[Result], choice: Mapping[str, Any] | None) -> list[str]:
    """What the numbers themselves say against leaning on them."""
    tests = tests_of(results)
    said = [
        "One seed: another one draws other heads, batches and noise. Intervals are over test images alone and hold none of that."
    ]
    if not any(part.startswith("test") for part in tests):
        said.append(
            "The data has no test part: figures are of validation images, on which weights and rungs were chosen."
        )
    changes = [r for r in results if is_tuned(r) and r.split in tests and r.metric.endswith("ap50_change")]
    halves = [50 * (r.ci_high - r.ci_low) for r in changes if np.isfinite((r.ci_low, r.ci_high)).all()]
    if any(halves):  # all are 0 where the untouched backbone was kept
        n = min(r.n for r in changes)
        said.append(
            f"With n = {n:,} test images a part, a change of AP50 of less than about {np.median(halves):.1f} points cannot be told "
            "from zero."
        )
    sure = [r for r in results if is_tuned(r) and r.metric.endswith("_change")]
    if len(sure) >= 20 and any(r.value or r.ci_high - r.ci_low for r in sure):
        said.append(
            f"{len(sure)} changes have an interval: if none of them were real, about {len(sure) / 20:.0f} would seem to be."
        )
    if any(r.metric == "bleu4" for r in results) and choice is not None:
        said.append("Captions have intervals before and after, and no paired one of the change.")
    if choice is not None and choice["step"]:
        said.append(
            "The checkpoint was chosen on validation images"
            + (" and by probes of other data" if choice["rule"] == "probes" else "")
            + ": their figures favour what was chosen. Test images had no say."
        )
    return said
