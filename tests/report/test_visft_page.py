"""The page of ViSFT from records alone: its first sentence in every case, 200 classes, hostile names, and what older runs lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keepsight.core import Result, UserError
from keepsight.report.page import Chart, Page, Table
from keepsight.report.render_html import render_html
from keepsight.report.scene_records import (
    CURVES,
    RECALLS,
    ClassRecord,
    Figure,
    PartRecord,
    PrecisionRecord,
    read_precision,
    write_precision,
)
from keepsight.report.visft import FACTS, RESULTS, VisftFacts
from keepsight.report.visft_page import visft_page

HOSTILE = "<script>alert('x')</script>"


def record(
    metric: str, value: float, width: float, split: str = "test-seen", method: str = "detr visft", **more: Any
) -> Result:
    task = "captioning" if metric == "bleu4" else "detection"
    given: dict[str, Any] = {"seconds": 300.0, "n": 150, "interval": "bootstrap"} | more
    return Result(
        task=task,
        dataset=HOSTILE,
        split=split,
        method=method,
        backbone="vit",
        readout="8,9:map",
        metric=metric,
        value=value,
        ci_low=value - width,
        ci_high=value + width,
        labels=10,
        seed=0,
        seeds=1,
        **given,
    )


BEFORE = [record("box_ap50", 0.6, 0.05, method="detr stage 1"), record("bleu4", 0.3, 0.1, method="caption stage 1")]


def choice(step: int, rule: str = "probes", probes: float | None = 0.5) -> dict[str, Any]:
    rungs = [{"step": 0, "tasks": {"detection": 0.6}, "probes": None if probes is None else 0.0}]
    rungs.append({"step": 75, "tasks": {"detection": 0.62}, "probes": probes})
    return {
        "step": step, "rule": rule, "rungs": rungs, "heads": {}, "trainable_parameters": 100, "seconds": 90.0, "step_seconds": 1.0
    }  # fmt: skip


def write(folder: Path, results: list[Result], chosen: dict[str, Any] | None) -> Path:
    facts = VisftFacts(
        version="1",
        command="keepsight visft x",
        config={"seed": 0},
        data=HOSTILE,
        classes=(HOSTILE, "b"),
        images={"train": 10},
    )
    (folder / FACTS).write_text(facts.model_dump_json())
    (folder / RESULTS).write_text("".join(r.model_dump_json() + "\n" for r in results))
    if chosen is not None:
        (folder / "joint").mkdir(exist_ok=True)
        (folder / "joint" / "choice.json").write_text(json.dumps(chosen))
    return folder


def changed(*values: float) -> list[Result]:
    parts = ("test-seen", "test-unseen")
    return [record("box_ap50_change", value, 0.01, part) for value, part in zip(values, parts, strict=False)]


def titles(page: Page) -> list[str]:
    return [section.title for section in page.sections]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            (0.03, 0.02),
            "Stage 2 gained on 2 of 2 figures of the tests: boxes AP50 +3.0 [+2.0, +4.0] points on test-seen (n = 150)",
        ),
        ((-0.03, 0.0), "Stage 2 lost on 1 of 2 figures of the tests: boxes AP50 -3.0"),
        ((-0.03, 0.03), "Stage 2 gained on 1 and lost on 1 of 2 figures of the tests"),
        ((0.002, -0.002), "Stage 2 changed nothing on its tasks that can be told from zero: boxes AP50 +0.2"),
    ],
)
def test_the_answer_says_what_the_intervals_say(tmp_path: Path, values: tuple[float, float], said: str) -> None:
    page = visft_page(write(tmp_path, [*BEFORE, *changed(*values)], choice(75)))
    assert page.answer.startswith(said)
    assert "gained 0.5 points on the half that chose the checkpoint, which proves nothing yet" in page.answer
    assert page.answer.endswith("stage 2 took 90 s, after 10 minutes for the heads.")
    assert titles(page)[:2] == ["Before and after", "Checkpoints of stage 2"]


def test_other_ends_have_other_sentences(tmp_path: Path) -> None:
    alone = visft_page(write(tmp_path, BEFORE, None))
    assert alone.answer == (
        "On the frozen backbone the heads reach boxes AP50 60.0 [55.0, 65.0], captions BLEU-4 30.0 [20.0, 40.0] per cent on "
        "test-seen (n = 150), after 10 minutes of training; the backbone was not tuned."
    )
    assert "Checkpoints of stage 2" not in titles(alone)
    kept = visft_page(write(tmp_path, [*BEFORE, *changed(0.0, 0.0)], choice(0)))
    assert kept.answer.startswith("Stage 2 gained nothing: on validation images no checkpoint was better")
    unprobed = visft_page(write(tmp_path, [*BEFORE, *changed(0.0, 0.0)], choice(75, "tasks", None)))
    assert "other data were not looked at" in unprobed.answer
    assert "Trained tasks against other data" not in render_html(unprobed)
    lost = visft_page(write(tmp_path, [*BEFORE, *changed(0.0, 0.0)], choice(75, "last", -0.4)))
    assert "lost 0.4 points, without an interval" in lost.answer
    captions = [BEFORE[1], record("bleu4", 0.4, 0.1, method="caption visft")]
    assert "has no paired interval" in visft_page(write(tmp_path, captions, choice(75))).answer


def test_where_nothing_changed_no_limit_is_made_of_it(tmp_path: Path) -> None:
    parts = [f"test-{i}" for i in range(24)]
    for width, said in ((0.01, True), (0.0, False)):
        changes = [record("box_ap50_change", 0.0, width, part) for part in parts]
        text = visft_page(write(tmp_path, [*BEFORE, *changes], choice(75 if said else 0))).model_dump_json()
        assert ("cannot be told from zero." in text) == said
        assert ("24 changes have an interval" in text) == said


def test_without_a_test_part_the_page_says_so(tmp_path: Path) -> None:
    rows = [r.model_copy(update={"split": "validation"}) for r in [*BEFORE, *changed(0.03)]]
    page = visft_page(write(tmp_path, rows, choice(75)))
    assert "on validation (n = 150)" in page.answer
    assert "The data has no test part" in page.model_dump_json()


def classes(n: int, tuned: bool = True) -> tuple[ClassRecord, ...]:
    figure, curve = Figure(value=0.5, low=0.4, high=0.6), tuple(1 - r for r in RECALLS)
    change = Figure(value=0.01, low=-0.01, high=0.03)
    more: dict[str, Any] = {"tuned": figure, "change": change, "tuned_precision": curve} if tuned else {}
    names = [HOSTILE, *(f"class {i}" for i in range(n - 1))]
    return tuple(
        ClassRecord(name=name, objects=i + 1, frozen=figure, frozen_precision=curve, **more)
        for i, name in enumerate(names)
    )


@pytest.mark.parametrize(("n", "charts", "tables"), [(3, 4, 0), (200, 4, 1)])
def test_each_class_is_shown_and_many_stay_readable(tmp_path: Path, n: int, charts: int, tables: int) -> None:
    folder = write(tmp_path, [*BEFORE, *changed(0.0, 0.0)], choice(75))
    part = PartRecord(task="detection", part="test-seen", images=150, classes=classes(n))
    seen = PartRecord(task="detection", part="validation", images=150, classes=classes(n))
    write_precision(folder, PrecisionRecord(parts=(seen, part)))
    page = visft_page(folder)
    (section,) = [s for s in page.sections if s.title == "Each class"]
    assert sum(isinstance(block, Chart) for block in section.blocks) == charts
    found = [block for block in section.blocks if isinstance(block, Table)]
    assert [len(table.rows) for table in found] == [n] * tables
    drawn = [len(b.spec["data"]["values"]) for b in section.blocks if isinstance(b, Chart)]
    assert max(drawn) <= 6 * len(RECALLS)
    html = render_html(page)
    assert HOSTILE not in html
    assert len(html) < 5e6


def test_heads_alone_have_classes_without_changes(tmp_path: Path) -> None:
    folder = write(tmp_path, BEFORE, None)
    part = PartRecord(task="segmentation", part="test-seen", images=150, classes=classes(3, tuned=False))
    write_precision(folder, PrecisionRecord(parts=(part,)))
    (section,) = [s for s in visft_page(folder).sections if s.title == "Each class"]
    assert [block.title for block in section.blocks] == [
        "Masks on test-seen: each class",
        "Masks on test-seen: precision and recall, mean over classes",
        "Masks on test-seen: precision and recall of classes",
    ]


def test_damaged_records_are_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path, BEFORE, None)
    (folder / CURVES).write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_precision(folder)
    (folder / FACTS).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        visft_page(folder)
    with pytest.raises(UserError, match="no run of ViSFT"):
        visft_page(tmp_path / "none")
