"""`keepsight compare DATA`: one real comparison, and one sentence for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keepsight.export.model import TunedModel
from keepsight.report.ladder_page import ladder_blocks
from keepsight.report.ladder_records import read_ladder
from keepsight.report.page import Chart, Table, Text

SMALL = ["backbone.weights=random", "probe.folds=2", "selection_folds=2", "trackers=[]", "finetune_full.epochs=2"]
SMALL += ["finetune_full.training.optim.lr=0.0002", "forgetting.per_set=50", "forgetting.rule.folds=2"]
SMALL += ["--backbone", "test_vit", "--size", "32", "--readout", "2:mean", "--labels", "30", "--test", "30"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


def test_compare_within_a_limit(run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--methods", "probe,full", "--retain", "none,wise-ft,wise-ft:0", "--seeds", 1, "--suite", "digits"]
    printed = run("compare", data, *SMALL, *words, "--max-forgetting", "0.5pp", "--out", out)
    assert printed.code == 0, printed.err
    record = read_ladder(out)
    full, curve, start = (record.candidate(f"finetune-full{end}") for end in ("", "+wise-ft", "+wise-ft:0"))
    assert (start.alpha, start.loss, start.within) == (0.0, 0.0, True)
    assert curve.allowed[0] == 0
    assert curve.alpha in curve.allowed
    assert full.loss is not None
    assert full.within is (full.loss <= 0.5)
    if not full.within:
        assert 1.0 not in curve.allowed
    lines = printed.out.splitlines()
    page = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert page["answer"] in lines[0]
    assert page["kind"] == "compare"
    assert "finetune-full+wise-ft" in printed.out
    assert "Recommended:" in printed.out
    assert str(out / "report.html") in printed.out
    chosen = json.loads((out / "recommendation.json").read_text(encoding="utf-8"))["method"]
    assert TunedModel.load(out / "model").method == chosen
    for name in ("config.yaml", "splits.json", "environment.json", "results.jsonl", "origin.json", "log.txt"):
        assert (out / name).is_file()
    assert not list(out.glob("cells/*/fold-*/model"))
    blocks = ladder_blocks(out)
    table, reasons = (block for block in blocks if isinstance(block, Table))
    assert [row[0].partition(" ")[0] for row in table.rows] == [c.name for c in record.candidates]
    assert [row[-1] for row in reasons.rows] == [c.why for c in record.candidates]
    assert any(isinstance(block, Chart) for block in blocks)
    assert any(isinstance(block, Text) and block.text == record.rule for block in blocks)
    again = run("compare", data, *SMALL, *words, "--max-forgetting", "0.5pp", "--out", out)
    assert again.code == 0
    assert "finished already" in again.err


def test_dry_run_names_the_candidates_and_writes_nothing(run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--methods", "full,probe,vpt", "--retain", "none,wise-ft", "--out", out]
    printed = run("compare", data, *SMALL, *words, "--dry-run")
    assert printed.code == 0, printed.err
    names = [line.removeprefix("# candidate: ") for line in printed.out.splitlines() if "# candidate" in line]
    assert names == ["probe", "finetune-vpt", "finetune-full", "finetune-full+wise-ft"]
    assert "# finetune-vpt+wise-ft is left out: " in printed.out
    assert "# labelled: 30" in printed.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "--methods", "lorra"], "did you mean lora?"),
        (["digits", "--methods", "probe,probe"], "twice"),
        (["digits", "--methods", "probe,knn", "--retain", "none,procrustes"], "tunes the backbone"),
        (["digits", "--methods", "vpt", "--retain", "wise-ft"], "parts that have no before"),
        (["digits", "--retain", "procustes"], "did you mean procrustes?"),
        (["digits", "--retain", "tpgm"], "split.validation=0.2"),
        (["digits", "--budget", "soon"], "such as 30m, 90s or 2h"),
        (["digits", "--max-forgetting", "lots"], "points of accuracy"),
        (["digits", "--suite", "nowhere-at-all"], "nowhere-at-all"),
        (["nowhere-at-all"], "nowhere-at-all"),
        (["digits", "split.label=3"], "did you mean"),
        (["digits", "retain=procrustes"], "use --retain"),
        (["digits", "forgetting.limit=1"], "use --max-forgetting"),
        (["--methods", "probe"], "DATA is missing"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, tmp_path: Path, words: list[str], said: str) -> None:
    printed = run("compare", *words, "--out", tmp_path / "out")
    assert printed.code == 2
    assert len(printed.errors) == 1
    assert said in printed.errors[0]
    assert not (tmp_path / "out").exists()


def test_help_explains_both(run) -> None:
    printed = run("compare", "--help")
    assert printed.code == 0
    for part in ("DATA", "retention", "--budget", "demo"):
        assert part in printed.out
    printed = run("compare", "leaves", "--help")
    assert printed.code == 0
    assert "--max-forgetting" in printed.out
