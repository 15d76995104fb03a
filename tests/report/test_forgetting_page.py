"""The page about forgetting comes from records alone, says what was found, and is the same when it is read back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from keepsight.core import UserError
from keepsight.report.forgetting_page import CONTROL, forgetting_page, forgetting_sections
from keepsight.report.forgetting_records import (
    AdapterSwitch,
    BlockSimilarity,
    Figure,
    ForgettingFindings,
    ForgettingPoints,
    SetFindings,
    SetPoints,
    SharpnessFindings,
    WeightFindings,
)
from keepsight.report.page import Block, Chart, Page, Table, Text, read_page
from keepsight.report.render_html import render_html
from keepsight.report.render_markdown import render_markdown
from keepsight.report.write import write_page

HOSTILE = '</td><script>alert("1")</script>|&`x`\n[red]'
CONFIG = {"seed": 0, "rule": {"folds": 5, "neighbours": 10}, "template": HOSTILE}


def figure(before: float, change: float, reach: float = 0.02, kind: str = "paired bootstrap") -> Figure:
    return Figure(before=before, after=before + change, low=change - reach, high=change + reach, kind=kind)


def one_set(name: str, change: float, **more: Figure) -> SetFindings:
    figures = {
        "probe_accuracy": figure(0.9, change),
        "knn_accuracy": figure(0.8, change),
        "probe_ece": figure(0.1, 0.01),
    }
    blocks = tuple(
        BlockSimilarity(readout=text, cka=cka, shuffled=0.01)
        for text, cka in (("1:mean", 0.99), ("2:mean", 0.7), ("readout last:cls", 0.6))
    )
    return SetFindings(name=name, images=500, classes=3, figures=figures | more, blocks=blocks)


def findings(**more: Any) -> ForgettingFindings:
    values: dict[str, Any] = {
        "method": "finetune-full",
        "against": "untouched",
        "backbone": "vit",
        "readout": "last:cls",
        "weights_before": "a",
        "weights_after": "b",
        "config": CONFIG,
        "sets": (one_set("digits", -0.05), one_set(HOSTILE, -0.15)),
        "mean": {"probe_accuracy": figure(0.9, -0.1), "knn_accuracy": figure(0.8, -0.1)},
        "weights": WeightFindings(total=0.5, blocks={0: 0.0, 1: 0.25, 2: 0.75, 3: 0.125}),
        "adapter": None,
        "sharpness": None,
        "notes": ("gone is left out: it is not here.",),
        "extracted": 0,
        "seconds": 1.0,
        "version": "1",
    }
    return ForgettingFindings(**(values | more))


def folder(path: Path, found: ForgettingFindings, points: bool = True) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "forgetting.json").write_text(found.model_dump_json())
    if points:
        sets = [
            SetPoints(
                name=s.name,
                before=((0.0, 1.0), (2.0, 3.0)),
                after=((0.0, 1.0), (-2.0, 3.0)),
                labels=(0, 1),
                classes=(HOSTILE, "b"),
            )
            for s in found.sets
        ]
        (path / "pca.json").write_text(ForgettingPoints(sets=tuple(sets)).model_dump_json())
    return path


def blocks(page: Page) -> list[Block]:
    return [block for section in page.sections for block in section.blocks]


def tables(page: Page) -> dict[str, Table]:
    return {block.title: block for block in blocks(page) if isinstance(block, Table)}


def charts(page: Page) -> dict[str, Chart]:
    return {block.title: block for block in blocks(page) if isinstance(block, Chart)}


def texts(page: Page) -> str:
    return " ".join([page.answer, *page.lead, *(block.text for block in blocks(page) if isinstance(block, Text))])


def test_every_figure_has_its_place(tmp_path: Path) -> None:
    page = forgetting_page(folder(tmp_path, findings()))
    accuracies = tables(page)["Accuracy before and after"]
    assert accuracies.headings == ("data set", "images", "classes", "linear probe %", "k-NN %", "calibration error %")
    assert accuracies.rows[0] == (
        "digits",
        "500",
        "3",
        "90.0 -> 85.0 (-5.0 [-7.0, -3.0])",
        "80.0 -> 75.0 (-5.0 [-7.0, -3.0])",
        "10.0 -> 11.0 (+1.0 [-1.0, +3.0])",
    )
    assert accuracies.rows[-1][:2] == ("mean of the suite", "1,000")
    assert accuracies.rows[-1][-1] == "-"  # the mean has no calibration error in this record
    assert "5 folds" in accuracies.caption
    assert "10 neighbours" in accuracies.caption
    distances = tables(page)["Distance of the weights"].rows
    assert distances == (
        ("all weights", "5.00e-01"),
        ("before the first block", "0.00e+00"),
        ("block 1", "2.50e-01"),
        ("block 2", "7.50e-01"),
        ("after the last block", "1.25e-01"),
    )
    readout = tables(page)["Similarity of the readout last:cls"].rows
    assert readout[0] == ("digits", "500", "0.600", "+0.010")
    assert page.answer.startswith(
        "finetune-full forgot: -10.0 points [-12.0, -8.0] of linear-probe accuracy on 2 data sets"
    )
    assert "k-NN -10.0 points [-12.0, -8.0]" in page.answer
    assert "gone is left out" in texts(page)


def test_charts_of_changes_blocks_and_axes(tmp_path: Path) -> None:
    found = charts(forgetting_page(folder(tmp_path, findings())))
    changes = found["Change of accuracy: linear probe"].data.rows
    assert [row[0] for row in changes] == ["digits", HOSTILE, "mean of the suite"]
    assert [float(row[1]) for row in changes] == [-5, -15, -10]
    by_block = found["Similarity to the representation before, block by block"].data.rows
    assert len(by_block) == 2 * 3
    assert [float(row[2]) for row in by_block if row[0] == "digits"] == [0.99, 0.7]
    assert [float(row[2]) for row in by_block if row[0] == CONTROL] == [0.01, 0.01]
    panels = found["Principal axes: digits"].spec["concat"]
    assert [panel["title"] for panel in panels] == ["before", "after, rotated back"]
    assert [[(p["x"], p["y"]) for p in panel["data"]["values"]] for panel in panels] == [
        [(0, 1), (2, 3)],
        [(0, 1), (-2, 3)],
    ]
    assert "Change of accuracy: zero-shot" not in found


def test_a_sure_loss_is_marked(tmp_path: Path) -> None:
    sets = (one_set("lost", -0.05), one_set("kept", -0.01))
    found = charts(forgetting_page(folder(tmp_path, findings(sets=sets))))
    values = found["Change of accuracy: linear probe"].spec["data"]["values"]
    assert {row["name"]: row["marked"] for row in values} == {"lost": True, "kept": False, "mean of the suite": True}


def test_zero_shot_adapter_and_sharpness_are_told_where_they_were_measured(tmp_path: Path) -> None:
    shot = figure(0.5, -0.2)
    more = {
        "sets": (one_set("digits", 0.0, zero_shot_accuracy=shot),),
        "adapter": AdapterSwitch(images=32, off_identical=True, off_deviation=0, on_deviation=1e-6),
        "sharpness": SharpnessFindings(loss=1.5, rise=0.25, spread=0.125, rho=0.01, pairs=5, images=9),
    }
    page = forgetting_page(folder(tmp_path, findings(**more)))
    assert "50.0 -> 30.0 (-20.0 [-22.0, -18.0])" in tables(page)["Accuracy before and after"].rows[0]
    assert "Change of accuracy: zero-shot" in charts(page)
    said = texts(page)
    assert "switched off, the model has forgotten nothing, exactly" in said
    assert "which is rounding" in said
    assert "rises from 1.5000 by 0.2500 nats (standard deviation 0.1250 over 5 pairs)" in said
    off = AdapterSwitch(images=32, off_identical=False, off_deviation=0.5, on_deviation=0.1)
    assert "they are not the same" in texts(forgetting_page(folder(tmp_path, findings(adapter=off))))


@pytest.mark.parametrize(
    ("probe", "knn", "said"),
    [
        (figure(0.9, -0.1), figure(0.8, 0.0), "finetune-full forgot: -10.0 points"),
        (figure(0.9, 0.0), figure(0.8, -0.1), "forgot, which k-NN shows and the linear probe does not"),
        (figure(0.9, 0.0), figure(0.8, 0.0), "changed nothing that can be told from zero"),
        (figure(0.9, 0.1), figure(0.8, 0.0), "forgot nothing that shows, and gained: +10.0 points"),
        (figure(0.9, 0.0, 0.0, "identical"), figure(0.8, 0.0), "forgot nothing on 2 data sets"),
    ],
)
def test_the_answer_says_no_more_than_the_intervals(tmp_path: Path, probe: Figure, knn: Figure, said: str) -> None:
    page = forgetting_page(folder(tmp_path, findings(mean={"probe_accuracy": probe, "knn_accuracy": knn})))
    assert said in page.answer


def test_an_older_record_has_no_points_and_other_networks_no_blocks(tmp_path: Path) -> None:
    small = one_set("digits", -0.05)
    narrow = small.model_copy(update={"blocks": small.blocks[-1:]})
    found = findings(sets=(narrow,), weights=None)
    path = folder(tmp_path, found, points=False)
    record = json.loads((path / "forgetting.json").read_text())
    del record["version"]
    (path / "forgetting.json").write_text(json.dumps(record))
    page = forgetting_page(path)
    titles = [section.title for section in page.sections]
    assert titles == ["Accuracy on data that was not trained on", "Similarity of the representations", "Settings"]
    assert all("block by block" not in title for title in charts(page))
    write_page(path, page)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_page_that_was_read_back_is_the_same_and_hostile_names_stay_text(tmp_path: Path) -> None:
    page = forgetting_page(folder(tmp_path, findings()))
    write_page(tmp_path, page)
    again = read_page(tmp_path / "report.json")
    assert again == page
    html = (tmp_path / "report.html").read_text()
    assert render_html(again) == html
    assert render_markdown(again) == (tmp_path / "report.md").read_text()
    assert 'alert("1")</script>' not in html
    clean = findings(sets=(one_set("digits", -0.05), one_set("plain", -0.15)), config={**CONFIG, "template": "x"})
    (tmp_path / "clean").mkdir()
    pages = []
    for found in (findings(), clean):
        tags = Tags()
        tags.feed(render_html(forgetting_page(folder(tmp_path / "clean", found, points=False))))
        pages.append([tag for tag, _ in tags.tags])
        assert not any(value for _, attrs in tags.tags for name, value in attrs.items() if name == "src")
    assert pages[0] == pages[1]  # a name makes no element


def test_sections_of_a_run_compare_its_methods(tmp_path: Path) -> None:
    run = tmp_path / "forgetting"
    assert forgetting_sections(run) == []
    folder(run / "finetune-full", findings())
    ((title, alone),) = forgetting_sections(run)
    assert title == "What finetune-full forgot"
    assert sum(isinstance(block, Chart) for block in alone) == 2 + 1 + 2
    mild = findings(mean={"probe_accuracy": figure(0.9, -0.01)}, method="finetune-lora")
    folder(run / "finetune-lora", mild, points=False)
    folder(run / ".finetune-lora.tmp", findings())
    (run / "log.txt").write_text("")
    found = dict(forgetting_sections(run))
    assert list(found) == ["What was forgotten", "What finetune-full forgot", "What finetune-lora forgot"]
    table, chart = found["What was forgotten"]
    assert isinstance(table, Table)
    assert isinstance(chart, Chart)
    assert [row[:3] for row in table.rows] == [
        ("finetune-full", "1,000", "90.0 -> 80.0 (-10.0 [-12.0, -8.0])"),
        ("finetune-lora", "1,000", "90.0 -> 89.0 (-1.0 [-3.0, +1.0])"),
    ]
    assert table.rows[1][3] == "-"
    (run / "finetune-lora" / "forgetting.json").write_text("{")
    found = dict(forgetting_sections(run))
    (text,) = found["What finetune-lora forgot"]
    assert isinstance(text, Text)
    assert "is damaged" in text.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("forgetting.json", None, "no measurement"), ("forgetting.json", "{", "damaged"), ("pca.json", "[]", "damaged")],
)
def test_what_is_missing_or_damaged_is_said(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    path = folder(tmp_path, findings())
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        forgetting_page(path)
