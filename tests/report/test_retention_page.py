"""The page of a comparison of retention says what the intervals say, from records alone, and is the same when it is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keepsight.core import Result, UserError
from keepsight.report.page import Chart, Page, Table, Text, read_page
from keepsight.report.render_html import render_html
from keepsight.report.render_markdown import render_markdown
from keepsight.report.retention_page import retention_page
from keepsight.report.retention_records import (
    MEAN,
    PLAIN,
    SHARE_OF_SEED,
    UNTOUCHED,
    CellFailure,
    CompareFacts,
    read_compare_facts,
)
from keepsight.report.retention_table import retention_tables
from keepsight.report.write import write_page

EVIL = '</td><script>alert("1")</script>|&`x`'
Change = tuple[float, float, float]
FULL = "finetune-full"


def record(
    method: str, retain: str, metric: str, dataset: str, split: str, change: Change, against: str | None
) -> Result:
    value, low, high = change
    return Result(
        task="retention",
        dataset=dataset,
        split=split,
        method=method,
        backbone="vit",
        readout="8:mean",
        metric=metric,
        value=value,
        ci_low=low,
        ci_high=high,
        interval="paired bootstrap",
        n=1000 if split == "test" else 1500,
        labels=256,
        seed=0,
        seeds=1,
        against=against,
        retain=retain,
    )


def around(value: float, reach: float = 0.01) -> Change:
    return value, value - reach, value + reach


def variant(
    method: str, name: str, elsewhere: float, task: float = 0.0, reach: float = 0.01, loss: float = -0.1
) -> list[Result]:
    """The records of one variant: its accuracy is 80 % and `task`; plain training lost `loss` on the suite."""
    made = []
    for metric in ("accuracy", "refitted_accuracy"):
        made.append(record(method, name, metric, "leaves", "test", around(0.8 + task), None))
        made.append(record(method, name, f"{metric}_change", "leaves", "test", around(0.05 + task), UNTOUCHED))
    for dataset in ("digits", EVIL, MEAN):
        made.append(
            record(method, name, "probe_accuracy_change", dataset, "suite", around(elsewhere, reach), UNTOUCHED)
        )
    made.append(record(method, name, "cka", MEAN, "suite", around(0.9), UNTOUCHED))
    made.append(record(method, name, "cka_shuffled", MEAN, "suite", around(0.01), UNTOUCHED))
    if name != PLAIN:
        made.append(record(method, name, "accuracy_change", "leaves", "test", around(task), PLAIN))
        made.append(
            record(method, name, "probe_accuracy_change", MEAN, "suite", around(elsewhere - loss, reach), PLAIN)
        )
        made.append(record(method, name, "share_kept", MEAN, "suite", around(1 - elsewhere / loss), PLAIN))
    return made


def untouched() -> list[Result]:
    return [
        record(UNTOUCHED, PLAIN, metric, "leaves", "test", around(0.75), None)
        for metric in ("accuracy", "refitted_accuracy")
    ]


def usual(method: str = FULL) -> list[Result]:
    return [
        *variant(method, PLAIN, -0.1),
        *variant(method, "procrustes:8", -0.02),
        *variant(method, "procrustes:2", -0.05),
        *variant(method, "distill", -0.01, task=-0.05),  # keeps more, and loses on the task
        *variant(method, "wise-ft:0", 0.0, task=-0.05),
        *variant(method, "wise-ft:1", -0.1),
        *variant(method, "wise-ft:0.5", -0.03),
        *variant(method, "wise-ft:0.1", -0.08),
        *variant(method, "unlabelled-control", -0.03),
    ]


def folder(path: Path, results: list[Result], failures: list[CellFailure] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    facts = CompareFacts(
        version="1",
        command=f"keepsight {EVIL}",
        config={"pool": 2000, "data": EVIL},
        task="leaves",
        sets=("digits", EVIL),
        notes=("gone is left out.",),
    )
    (path / "compare.json").write_text(facts.model_dump_json())
    (path / "results.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in results))
    (path / "failures.jsonl").write_text("".join(f.model_dump_json() + "\n" for f in failures or []))
    return path


def section(page: Page, title: str) -> list[Any]:
    (found,) = (s.blocks for s in page.sections if s.title == title)
    return list(found)


def texts(page: Page, title: str = "What can be said") -> list[str]:
    return [b.text for b in section(page, title) if isinstance(b, Text)]


def test_the_answer_names_the_best_that_costs_nothing(tmp_path: Path) -> None:
    page = retention_page(folder(tmp_path, [*untouched(), *usual()]))
    assert page.answer == (
        "With finetune-full, procrustes:8 keeps most without a loss on the task that shows: +8.0 [+7.0, +9.0] points on "
        "other data and +0.0 [-1.0, +1.0] on the task against plain tuning; none beats WiSE-FT (wise-ft:0.5: +7.0 [+6.0, +8.0]); "
        "tuning without labels keeps as much (+7.0 [+6.0, +8.0])."
    )
    said = texts(page)
    assert "procrustes:8 keeps 80 [79, 81] % of what finetune-full loses without it." in said
    assert "procrustes:8 is the best of 3 variants" in " ".join(said)
    assert "gone is left out." in said
    assert any(
        line.startswith("The control, as many steps without labels, keeps +7.0 [+6.0, +8.0] points") for line in said
    )
    assert "n = 1,000 test images of leaves" in page.lead[0]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([*usual(), *variant(FULL, "ldifs", 0.05)], "ldifs keeps most without a loss on the task that shows: +15.0"),
        ([*usual(), *variant(FULL, "ldifs", 0.05)], "more than WiSE-FT (wise-ft:0.5: +7.0 [+6.0, +8.0])"),
        (
            [*usual(), *variant(FULL, "wise-ft:0.2", 0.05)],
            "less than WiSE-FT (wise-ft:0.2: +15.0 [+14.0, +16.0])",
        ),
        ([*usual(), *variant(FULL, "l2-sp", 0.0, task=-0.05)], "With finetune-full, procrustes:8 keeps most"),
        (
            [*variant(FULL, PLAIN, -0.1), *variant(FULL, "l2-sp", -0.1)],
            "no variant keeps surely more than plain training",
        ),
        (
            [*variant(FULL, PLAIN, -0.1), *variant(FULL, "l2-sp", -0.1), *variant(FULL, "wise-ft:0.5", -0.02)],
            "WiSE-FT keeps +8.0 [+7.0, +9.0] points on other data and +0.0 [-1.0, +1.0] on the task (wise-ft:0.5)",
        ),
        (
            [*variant(FULL, PLAIN, -0.1), *variant(FULL, "wise-ft:0.5", -0.02)],
            "nothing but WiSE-FT and controls was compared",
        ),
        (
            [*variant(FULL, PLAIN, -0.005)],
            "lost nothing on other data that can be told from zero (-0.5 [-1.5, +0.5] points)",
        ),
        ([*variant(FULL, "l2-sp", -0.1)], "finetune-full without retention has no result"),
        (
            [*variant(FULL, PLAIN, -0.1, task=-0.1), *variant(FULL, "l2-sp", -0.02)],
            "plain tuning is worse on the task than a probe on the untouched backbone (-5.0 [-6.0, -4.0] points)",
        ),
        (
            [*variant(FULL, PLAIN, -0.1, task=-0.05), *variant(FULL, "l2-sp", -0.02)],
            "plain tuning gains nothing on the task that is surely more than a probe on the untouched backbone",
        ),
        ([], "No method has come to a result."),
    ],
)
def test_the_answer_says_no_more_than_the_intervals(tmp_path: Path, results: list[Result], said: str) -> None:
    assert said in retention_page(folder(tmp_path, [*untouched(), *results])).answer


def test_a_control_that_keeps_less_is_not_said_to_keep_as_much(tmp_path: Path) -> None:
    results = [r for r in usual() if r.retain != "unlabelled-control"]
    answer = retention_page(folder(tmp_path, [*results, *variant(FULL, "unlabelled-control", -0.09)])).answer
    assert "tuning without labels" not in answer


def test_each_method_has_its_tables_and_charts(tmp_path: Path) -> None:
    failure = CellFailure(method=FULL, retain=EVIL, seed=0, sentence="Bad.")
    page = retention_page(folder(tmp_path, [*untouched(), *usual(), *usual("finetune-lora")], [failure]))
    assert "; with finetune-lora, procrustes:8" in page.answer
    kept, explained = (b for b in section(page, "finetune-lora") if isinstance(b, Table))
    assert kept.headings[:3] == ("retain", "trained head %", "refitted probe %")
    assert [row[0] for row in kept.rows][:3] == [UNTOUCHED, "none (plain)", "procrustes:8"]
    assert len(kept.rows) == len(explained.rows) == 10
    assert [kept.rows[i][0] for i in kept.marked] == ["procrustes:8"]
    assert kept.rows[2][-2:] == ("+8.0 [+7.0, +9.0]", "80 [79, 81]")
    assert "CKA (control)" in explained.headings
    assert texts(page, "Without a result") == [f"Failed: finetune-full, {EVIL}, seed 0: Bad."]
    charts = [b for b in section(page, "finetune-lora") if isinstance(b, Chart)]
    assert [chart.title.partition(":")[0] for chart in charts] == [
        "finetune-lora, trained head",
        "finetune-lora, refitted probe",
        "finetune-lora",
        "finetune-lora",
    ]
    values = charts[0].spec["data"]["values"]
    curve = [row["name"] for row in values if row["group"] == "wise-ft"]
    assert curve == ["wise-ft:0", "wise-ft:0.1", "wise-ft:0.5", "wise-ft:1"]  # in the order of alpha
    assert {row["group"] for row in values if row["joined"]} == {"wise-ft", "procrustes"}
    assert (values[-1]["name"], values[-1]["x"], values[-1]["y"]) == (UNTOUCHED, 75.0, 0.0)
    shares = charts[2].spec["data"]["values"]
    assert [row["name"] for row in shares if row["marked"]] == ["procrustes:8"]
    assert {row["name"]: round(row["value"]) for row in shares}["wise-ft:0.5"] == 70
    similar = charts[3].spec["data"]["values"]
    assert "+0.010" in similar[0]["note"]


def test_without_a_share_points_are_shown(tmp_path: Path) -> None:
    results = [r for r in usual() if r.metric not in ("share_kept", "cka", "cka_shuffled")]
    charts = [b for b in section(retention_page(folder(tmp_path, results)), FULL) if isinstance(b, Chart)]
    assert charts[-1].title == "finetune-full: what was kept"
    assert {row[0]: float(row[1]) for row in charts[-1].data.rows}["procrustes:8"] == pytest.approx(8)
    assert UNTOUCHED not in {row[0] for row in charts[0].data.rows}


def test_a_page_that_was_read_back_is_the_same(tmp_path: Path) -> None:
    page = retention_page(folder(tmp_path, [*untouched(), *usual(), *variant(FULL, EVIL, -0.02)]))
    write_page(tmp_path, page)
    again = read_page(tmp_path / "report.json")
    assert again == page == retention_page(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert render_html(again) == html
    assert render_markdown(again) == (tmp_path / "report.md").read_text()
    assert 'alert("1")</script>' not in html


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished comparison"):
        retention_page(tmp_path)


def test_with_several_seeds_the_share_of_each_is_shown(tmp_path: Path) -> None:
    results = [r.model_copy(update={"seeds": 3, "seed": None}) for r in [*untouched(), *usual()]]
    for seed, share in enumerate((0.8, 0.7, 1.04)):
        one = record(FULL, "procrustes:8", SHARE_OF_SEED, MEAN, "suite", around(share), PLAIN)
        results.append(one.model_copy(update={"seed": seed}))
    table = retention_tables(read_compare_facts(folder(tmp_path, results)), results)[0]
    assert table.headings[-1] == "of each seed %"
    assert {row[1]: row[-1] for row in table.rows if row[0] == FULL}["procrustes:8"] == "80, 70, 104"
    alone = [*untouched(), *usual()]
    assert "of each seed %" not in retention_tables(read_compare_facts(tmp_path), alone)[0].headings
