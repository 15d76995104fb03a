"""`keepsight sweep`: a whole small sweep, its reports again, the dry run, and one sentence for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keepsight.core import UserError
from keepsight.recipes import cells

SMALL = [
    "--backbone",
    "test_vit",
    "--size",
    "32",
    "--seeds",
    "2",
    "--labels",
    "20",
    "backbone.weights=random",
    "readout=2:mean",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


def test_sweep_prints_tables_and_report_makes_them_again(run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--methods", "probe,finetune-lora", "finetune_lora.epochs=1", *SMALL]
    printed = run("sweep", "label-counts", data, *words, "--out", out)
    assert printed.code == 0, printed.err
    for part in ("20 labels", "frozen", "trainable", "probe", "finetune-lora", "2 seeds", "Sweep folder"):
        assert part in printed.out
    page = (out / "report.html").read_text()
    assert "keepsight sweep label-counts" in page
    assert "finetune_lora.epochs=1" in page
    before = {
        name: (out / name).read_bytes()
        for name in (
            "table.txt",
            "table.md",
            "report.html",
            "report.json",
            "report.md",
            "labels-all-test_vit-32-px.svg",
        )
    }
    for name in before:
        (out / name).unlink()
    assert run("sweep", "report", out).code == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    printed = run("sweep", "report", out, "--against", "probe")
    assert "minus that of probe" in " ".join(printed.out.split())
    assert run("sweep", "report", out, "--against", "knn").code == 2


def test_a_failed_cell_gives_exit_code_1(run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: Any) -> None:
        raise UserError("The training collapsed.")

    monkeypatch.setattr(cells, "_compute", compute)
    printed = run("sweep", "label-counts", data, "--methods", "knn", *SMALL, "--out", tmp_path / "out")
    assert printed.code == 1
    assert "The training collapsed." in printed.out
    assert printed.errors == []


def test_dry_run_counts_and_writes_nothing(run, data: Path, tmp_path: Path) -> None:
    words = ["--frozen", "--trainable", "--methods", "knn,probe,finetune-lora", *SMALL, "--labels", "20,40"]
    printed = run("sweep", "label-counts", data, *words, "--out", tmp_path / "out", "--dry-run")
    assert printed.code == 0, printed.err
    assert "points: 2" in printed.out
    assert "frozen_cells: 8" in printed.out
    assert "trainable_cells: 4" in printed.out
    assert "seconds_finetuning:" in printed.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no-such-data"], "no folder, CSV file or named data set 'no-such-data'"),
        (["digits,digits"], "'digits' is given twice"),
        (["digits,no-such-data"], "'no-such-data'"),
        (["digits", "--methods", "prob"], "did you mean 'probe'?"),
        (["digits", "--methods", "probe,probe"], "'probe' is given twice"),
        (["digits", "--methods", "finetune-lora", "--frozen"], "add --trainable"),
        (["digits", "--methods", ","], "--methods is empty"),
        (["digits", "--labels", "10,10"], "--labels has 10 twice"),
        (["digits", "--labels", "10,many"], "'many' is none"),
        (["digits", "--labels", "0"], "whole numbers from 1"),
        (["digits", "--labels", "-5"], "whole numbers from 1"),
        (["digits", "--labels", "5,10"], "--labels 5 is fewer than the 10 classes of digits"),
        (["digits", "--labels", "10,5000"], "--labels 5000 is more than the 1438 labelled images"),
        (["digits", "--labels", "10,50", "--pool", "40"], "more than the pool of 40"),
        (["digits", "--pool", "0"], "--pool must be at least 1"),
        (["digits", "--size", "32,32"], "--size has 32 twice"),
        (["digits", "--size", "big"], "'big' is none"),
        (["digits", "--size", "33"], "33"),
        (["digits", "--seeds", "0"], "seeds=0 is wrong"),
        (["digits", "--jobs", "0"], "jobs"),
        (["digits", "--backbone", "test_vit,test_vit"], "twice"),
        (["digits", "--backbone", "no_such_vit"], "no_such_vit"),
        (["digits", "--readout", "99:mean"], "99"),
        (["digits", "--against", "knn"], "--against knn"),
        (["digits", "--test", "0"], "no test images"),
        (["digits", "split.labels=40"], "use --labels"),
        (["digits", "probe.fold=3"], "probe.fold"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_computed(
    run, words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a cell was begun")

    monkeypatch.setattr(cells, "_compute", never)
    defaults = {"--methods": "probe", "--labels": "10", "--backbone": "test_vit", "--size": "32"}
    filled = [word for option, value in defaults.items() if option not in words for word in (option, value)]
    if "no_such_vit" not in words:
        filled.append("backbone.weights=random")
    out = tmp_path / "out"
    printed = run("sweep", "label-counts", *words, *filled, "--out", out)
    assert printed.code == 2, printed.out
    assert len(printed.errors) == 1
    assert sentence in printed.errors[0]
    assert not out.exists()


def test_every_data_set_is_checked_before_the_first_cell(run, data: Path, tmp_path: Path) -> None:
    printed = run("sweep", "label-counts", f"digits,{data}", *SMALL, "--labels", "20,200", "--out", tmp_path / "out")
    assert printed.code == 2
    assert "--labels 200 is more than the" in printed.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_sweep(run, tmp_path: Path) -> None:
    printed = run("sweep", "report", tmp_path)
    assert printed.code == 2
    assert "no sweep in" in printed.errors[0]
    printed = run("sweep", "label-count")
    assert "did you mean label-counts?" in printed.errors[0]
