"""The tables and the page of a run of probes, made from records alone; escaped, and honest about what is worse."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from keepsight.core import Result, UserError
from keepsight.report.galleries import EXAMPLES, write_galleries
from keepsight.report.page import Chart, Page, Pictures, Table, Text
from keepsight.report.probe_examples import Item, Looks, probe_galleries
from keepsight.report.probe_page import probe_page, probe_sections
from keepsight.report.probes import FACTS, RESULTS, ProbeFacts, print_probes, read_probe_facts, write_probe_table
from keepsight.report.render_html import render_html
from keepsight.report.tune_page import tune_page
from run_parts import planted_run


def record(metric: str, value: float, backbone: str, **more: Any) -> Result:
    given = {"better": "higher", "chance": 0.25, "against": None, "before": None} | more
    return Result(
        task="probe",
        dataset="<words>",
        split="test",
        method="ocr",
        backbone=backbone,
        readout="probe",
        metric=metric,
        value=value,
        ci_low=value - 0.02,
        ci_high=value + 0.02,
        interval="bootstrap",
        n=1200,
        labels=0,
        seed=0,
        seeds=1,
        size=112,
        **given,
    )


RECORDS = [
    record("word_accuracy", 0.4, "vit"),
    record("word_accuracy", 0.5, "runs/<x>"),
    record("word_accuracy_change", 0.1, "runs/<x>", before=0.4, against="untouched", chance=None),
    record("cer", 0.2, "vit", better="lower", chance=None),
    record("cer", 0.35, "runs/<x>", better="lower", chance=None),
    record("cer_change", 0.15, "runs/<x>", before=0.2, against="untouched", better="lower", chance=None),
    record("found_change", 0.01, "runs/<x>", before=0.2, against="untouched", chance=None),
    record("word_accuracy (plain)", 0.6, "runs/<x>", detail=True),
    record("word_accuracy (plain)_change", 0.6, "runs/<x>", detail=True),
]

FOUND = ProbeFacts(
    version="1",
    command="",
    config={"model": "runs/<x>"},
    model="runs/<x>",
    other="vit",
    against="untouched",
    weights=("a", "b"),
    notes=("vqa is left out: <no> data.",),
)


def write(folder: Path, facts: ProbeFacts, records: list[Result]) -> None:
    (folder / FACTS).write_text(facts.model_dump_json())
    (folder / RESULTS).write_text("".join(r.model_dump_json() + "\n" for r in records))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, FOUND, RECORDS)
    return tmp_path


def shown(page: Page, kind: type) -> list[Any]:
    return [block for section in page.sections for block in section.blocks if isinstance(block, kind)]


def test_the_page_shows_figures_examples_and_attention(folder: Path) -> None:
    image = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    items = [
        Item("ocr", image, "<i>two</i>", "too", False, "two", True),
        Item("ocr", image, "one", "one", True, "one", True),
    ]
    heat = np.full((4, 4), 1 / 16, np.float32)
    looks = Looks("attention", "block 12", (image, image), ((heat, heat), (heat, heat)), ("before", "after"))
    write_galleries(folder, probe_galleries(items, [looks]))
    page = probe_page(folder)
    (chart,) = shown(page, Chart)
    # More errors are a loss, and drawn to the left.
    assert [row[1] for row in chart.data.rows] == ["10.00", "-15.00", "1.00"]
    assert [value["marked"] for value in chart.spec["data"]["values"]] == [False, True, False]
    words, attention = shown(page, Pictures)
    assert [p.marked for p in words.pictures] == [True, False]
    assert words.pictures[0].caption == "truth: <i>two</i>; before: two (right); after: too (wrong)"
    assert (attention.title, len(attention.pictures)) == ("attention: block 12", 2)
    html = render_html(page)
    for text in (
        "&lt;i&gt;two&lt;/i&gt;",
        "&lt;no&gt; data",
        "40.0 [38.0, 42.0]",
        "+10.0 [+8.0, +12.0]",
        "cer (lower is better)",
    ):
        assert text in html
    assert "<i>two" not in html
    (folder / EXAMPLES).unlink()  # of an older version
    assert not shown(probe_page(folder), Pictures)
    (folder / EXAMPLES).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        probe_page(folder)


def test_the_page_of_a_run_shows_each_method_and_what_was_left_out(tmp_path: Path) -> None:
    planted_run(tmp_path, 6)
    for name in ("finetune-lora", "unasked"):
        (tmp_path / "probe" / name).mkdir(parents=True)
        write(tmp_path / "probe" / name, FOUND, RECORDS)
    (tmp_path / "probe" / "unasked" / RESULTS).unlink()  # nothing could be asked
    (section,) = (s for s in tune_page(tmp_path).sections if "Probes" in s.title)
    assert section.title == "finetune-lora: Probes before and after"
    assert section.blocks[0] == Text(text=FOUND.notes[0])


def test_the_answer_counts_what_is_sure(folder: Path) -> None:
    page = probe_page(folder)
    assert page.answer == (
        "Of 3 figures of the probes runs/<x> is surely better than before the tuning on 1 and surely worse on 1, and 1 cannot be "
        "told apart; the largest loss is in ocr: cer, <words>: +15.0 [+13.0, +17.0] points."
    )
    assert page.kind == "probe"
    assert [title for title, _ in probe_sections(folder)] == ["Probes before and after"]
    assert "Limitations" in [section.title for section in page.sections]


def test_a_network_that_did_not_change_has_no_largest_change(folder: Path) -> None:
    same = record("cer_change", 0.0, "runs/<x>", before=0.2, against="random", better="lower")
    write(folder, FOUND.model_copy(update={"against": "random"}), [same.model_copy(update={"ci_low": 0, "ci_high": 0})])
    assert probe_page(folder).answer.endswith("and 1 cannot be told apart; none changed at all.")
    assert "better than vit on 0" in probe_page(folder).answer


def test_one_network_alone_has_one_column_and_its_chance(folder: Path) -> None:
    alone = FOUND.model_copy(update={"other": None, "against": None})
    write(folder, alone, [RECORDS[1], record("found", 0.26, "runs/<x>")])
    page = probe_page(folder)
    assert "surely better than guessing on 1 of 2 figures" in page.answer
    (table,) = shown(page, Table)
    assert table.headings[-1] == "found"
    (chart,) = shown(page, Chart)
    assert chart.title == "What was found"
    out = io.StringIO()
    print_probes(alone, [RECORDS[1]], Console(file=out, width=160))
    assert "found" in out.getvalue()
    assert "difference" not in out.getvalue()


def test_the_table_as_a_text(folder: Path) -> None:
    write_probe_table(folder)
    text = (folder / "table.txt").read_text()
    assert "25.0" in text
    assert "Behind the figures" in text


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run of probes"):
        read_probe_facts(tmp_path)
    (tmp_path / FACTS).write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_probe_facts(tmp_path)
