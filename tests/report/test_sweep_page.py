"""The page of a sweep says what the intervals say, from records alone, and is the same when it is read back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keepsight.core import Result, UserError
from keepsight.report.page import Chart, Page, Table, Text, read_page
from keepsight.report.render_html import render_html
from keepsight.report.render_markdown import render_markdown
from keepsight.report.sweep_answer import pays_from
from keepsight.report.sweep_page import sweep_page
from keepsight.report.sweep_records import Failure, SweepFacts
from keepsight.report.sweep_table import SweepTable, tables
from keepsight.report.write import write_page

EVIL = '<script>alert("$x_1$")</script>[bold]|深\n{{'
FAMILIES = {"probe": "frozen", "content-style": "frozen", "finetune-lora": "trainable", "finetune-full": "trainable"}
Errors = dict[tuple[str, int], list[float]]
ERRORS: Errors = {
    ("probe", 10): [0.30, 0.34, 0.32],
    ("content-style", 10): [0.20, 0.23, 0.23],
    ("finetune-lora", 10): [0.33, 0.35],
    ("probe", 100): [0.10, 0.11, 0.12],
    ("content-style", 100): [0.12, 0.14, 0.13],
    ("finetune-lora", 100): [0.05, 0.065, 0.08],
}


def records(errors: Errors, dataset: str = "leaves") -> list[Result]:
    made = []
    for (method, labels), values in errors.items():
        about: dict[str, Any] = {
            "task": "classification",
            "dataset": dataset,
            "split": "test",
            "method": method,
            "backbone": "tiny",
            "readout": "8:grid2",
            "metric": "error",
            "interval": "seeds+bootstrap",
            "n": 1500,
            "labels": labels,
            "seconds": 2.34,
            "size": 56,
        }
        figures = [(seed, 1, value) for seed, value in enumerate(values)]
        for seed, seeds, value in (*figures, (None, len(values), float(np.mean(values)))):
            made.append(Result(**about, seed=seed, seeds=seeds, value=value, ci_low=value - 0.02, ci_high=value + 0.03))
    return made


def folder(path: Path, results: list[Result], failures: list[Failure] | None = None, command: str = "") -> Path:
    path.mkdir(exist_ok=True)
    facts = SweepFacts(version="1", command=command, families=FAMILIES, against=None, config={"data": [EVIL]})
    (path / "sweep.json").write_text(facts.model_dump_json())
    (path / "results.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in results))
    if failures is not None:
        (path / "failures.jsonl").write_text("".join(f.model_dump_json() + "\n" for f in failures))
    return path


def table_of(errors: Errors) -> SweepTable:
    facts = SweepFacts(version="1", command="", families=FAMILIES, against=None, config={})
    (found,) = tables(records(errors), [], facts)
    return found


def tables_of(page: Page) -> dict[str, Table]:
    return {b.title: b for s in page.sections for b in s.blocks if isinstance(b, Table)}


def charts_of(page: Page) -> list[Chart]:
    return [b for s in page.sections for b in s.blocks if isinstance(b, Chart)]


def test_the_answer_and_the_tables(tmp_path: Path) -> None:
    failure = Failure(
        dataset="leaves", backbone="tiny", size=56, method="finetune-lora", labels=10, seed=2, sentence=f"Bad {EVIL}."
    )
    page = sweep_page(folder(tmp_path, records(ERRORS), [failure], "keepsight sweep"))
    # differences -0.10, -0.11, -0.09 and -0.05, -0.045, -0.04; t(2) = 4.3027
    assert page.answer == (
        "With 10 labels content-style errs least (22.0 % [20.0, 25.0], -10.0 points [-12.5, -7.5] against probe), with 100 labels "
        "finetune-lora errs least (6.5 % [4.5, 9.5], -4.5 points [-5.7, -3.3] against probe); training a network (finetune-lora) "
        "pays from 100 labels on (-4.5 points [-5.7, -3.3] against probe, the strongest frozen method there)."
    )
    assert page.lead == ("leaves; tiny, 56 px; 3 seeds (0, 1, 2).",)
    errors = tables_of(page)["Test error, %"]
    assert errors.headings == ("method", "backbone", "10 labels", "100 labels")
    assert errors.rows == (
        ("probe", "frozen", "32.0 [30.0, 35.0]", "11.0 [9.0, 14.0]"),
        ("content-style", "frozen", "22.0 [20.0, 25.0]", "13.0 [11.0, 16.0]"),
        ("finetune-lora", "trainable", "34.0 [32.0, 37.0], 1 of 3 seeds failed", "6.5 [4.5, 9.5]"),
        ("least error", "", "content-style", "finetune-lora"),
    )
    differences = tables_of(page)["Differences in points"]
    assert differences.rows[0] == ("probe", "frozen", "+10.0 [+7.5, +12.5] *", "-2.0 [-4.5, +0.5]")
    assert "that of content-style" in differences.caption
    assert tables_of(page)["Seconds"].rows[0] == ("probe", "frozen", "2.3", "2.3")
    (place,) = [s for s in page.sections if s.title == "leaves, tiny, 56 px"]
    said = [b.text for b in place.blocks if isinstance(b, Text)]
    assert said == [f"Failed: finetune-lora, 10 labels, seed 2: Bad {EVIL}."]
    assert "that of probe" in tables_of(sweep_page(tmp_path, "probe"))["Differences in points"].caption


def test_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = records({**ERRORS, ("finetune-full", 10): [0.5, 0.5]})
    (every,) = charts_of(sweep_page(folder(tmp_path, results)))
    others = [r.model_copy(update={"method": f"knn-{i}"}) for i in range(3) for r in records({("probe", 10): [0.5]})]
    monkeypatch.setattr(sys.modules[__name__], "FAMILIES", FAMILIES | {f"knn-{i}": "frozen" for i in range(3)})
    paper, crowded = charts_of(sweep_page(folder(tmp_path, [*results, *others])))
    assert crowded.title == every.title
    assert "supervised methods and content-style" in paper.title
    assert {row[0] for row in paper.data.rows} == {"probe", "finetune-lora", "content-style"}
    assert "all methods" in every.title
    assert len(every.data.rows) == 7
    (row,) = [row for row in every.data.rows if row[:2] == ("probe", "100")]
    assert [float(word) for word in (row[2], *row[3].split(" to "))] == [11, 9, 14]
    scales = [layer["encoding"]["x"]["scale"]["type"] for layer in every.spec["layer"] if "x" in layer["encoding"]]
    assert set(scales) == {"log"}


LORA = "finetune-lora"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, (LORA, 100)),
        ({(LORA, 10): [0.10, 0.11, 0.12]}, (LORA, 10)),
        ({(LORA, 100): [0.05, 0.11, 0.20]}, None),  # too wide
        ({("content-style", 100): [0.02, 0.03, 0.02]}, None),  # worse than another frozen method
        ({("probe", 250): [0.05, 0.06, 0.05], (LORA, 250): [0.05, 0.05, 0.06]}, None),  # not at more labels
        ({("probe", 250): [0.05, 0.06, 0.05], (LORA, 250): [0.01, 0.02, 0.012]}, (LORA, 100)),
        (
            {("finetune-full", 10): [0.1, 0.12, 0.11], ("finetune-full", 100): [0.05, 0.065, 0.07]},
            ("finetune-full", 10),
        ),
        ({(LORA, 100): [0.05]}, None),  # one seed
    ],
)
def test_from_where_on_training_pays(change: Errors, found: tuple[str, int] | None) -> None:
    assert pays_from(table_of({**ERRORS, **change})) == found


def without(*methods: str) -> Errors:
    return {key: values for key, values in ERRORS.items() if key[0] not in methods}


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (without("finetune-lora"), "no network was trained."),
        (without("probe", "content-style"), "no frozen method was measured that a trained network would have to beat."),
        (without("probe"), "With 10 labels content-style errs least (22.0 % [20.0, 25.0]), with 100"),
        ({**ERRORS, (LORA, 100): [0.05, 0.11, 0.20]}, "show at no number of labels that training a network pays."),
        ({key: values[:1] for key, values in ERRORS.items()}, "with one seed there is no interval that could say"),
        (
            {("probe", 10): [0.3, 0.2, 0.1]},
            "probe errs least with 10 labels (20.0 % [18.0, 23.0]); no network was trained.",
        ),
    ],
)
def test_the_answer_says_no_more_than_the_intervals(tmp_path: Path, errors: Errors, said: str) -> None:
    assert said in sweep_page(folder(tmp_path, records(errors))).answer


def test_several_data_sets(tmp_path: Path) -> None:
    many = [record for name in ("leaves", "roots", "barks") for record in records(ERRORS, name)]
    page = sweep_page(folder(tmp_path, [*many, *records(without("finetune-lora"), "buds")]))
    assert page.answer == (
        "Of 4 data sets and backbones, the least error with the fewest labels is that of content-style on 4, with the most that of "
        "finetune-lora on 3 and probe on 1; training a network pays on 3 of 3: leaves from 100 labels on (finetune-lora, -4.5 "
        "points [-5.7, -3.3] against probe), roots from 100 labels on (finetune-lora, -4.5 points [-5.7, -3.3] against probe), "
        "barks from 100 labels on (finetune-lora, -4.5 points [-5.7, -3.3] against probe)."
    )
    assert [line.partition(":")[0] for line in page.lead[1:]] == ["leaves", "roots", "barks", "buds"]
    assert page.lead[2].startswith("roots: with 10 labels content-style errs least (22.0 % [20.0, 25.0], -10.0 points")


def test_nothing_but_failures_is_a_page(tmp_path: Path) -> None:
    failure = Failure(dataset="d", backbone="b", size=56, method="probe", labels=10, seed=0, sentence="It collapsed.")
    page = sweep_page(folder(tmp_path, [], [failure]))
    assert page.answer == "No method has come to a result."
    assert tables_of(page)["Test error, %"].rows[0] == ("probe", "frozen", "failed")
    assert charts_of(page) == []
    write_page(tmp_path, page)


def test_a_page_that_was_read_back_is_the_same(tmp_path: Path) -> None:
    page = sweep_page(folder(tmp_path, records(ERRORS, EVIL), None, f"keepsight {EVIL}"))
    write_page(tmp_path, page)
    again = read_page(tmp_path / "report.json")
    assert again == page == sweep_page(tmp_path)
    assert render_html(again) == (tmp_path / "report.html").read_text()
    assert render_markdown(again) == (tmp_path / "report.md").read_text()
    assert 'alert("$x_1$")</script>' not in (tmp_path / "report.html").read_text()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep in"):
        sweep_page(tmp_path)
