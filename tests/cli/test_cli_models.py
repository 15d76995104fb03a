"""predict, evaluate, embed and export through the command line: what they write, and what they refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from keepsight.core.result import read_results


def test_every_format_of_predict_says_the_same(run, model: Path, data: Path, tmp_path: Path) -> None:
    strange = data / "3" / 'a, "quoted"\nname.png'
    (data / "3").joinpath(next((data / "3").iterdir()).name).rename(strange)
    outs = [tmp_path / name for name in ("p.csv", "p.parquet", "p.jsonl")]
    for out in outs:
        assert run("predict", model, data / "3", "--out", out, "--batch-size", 5).code == 0
    with outs[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(outs[1]).to_pylist()
    lines = [json.loads(line) for line in outs[2].read_text().splitlines()]
    assert [r["path"] for r in rows] == [r["path"] for r in table] == [r["path"] for r in lines]
    assert [r["label"] for r in rows] == [r["label"] for r in table] == [r["label"] for r in lines]
    assert strange.name in [r["path"] for r in rows]
    for k in range(10):
        column = [float(r[f"p({k})"]) for r in rows]
        np.testing.assert_allclose(column, [r[f"p({k})"] for r in table], atol=1e-6)
        np.testing.assert_allclose(column, [r["probabilities"][str(k)] for r in lines], atol=1e-6)
    assert [max(r["probabilities"], key=r["probabilities"].get) for r in lines] == [r["label"] for r in lines]


def test_predict_takes_a_table_and_a_name(run, model: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "".join(f"data/3/{p.name},\n" for p in (data / "3").iterdir()))
    printed = run("predict", model, table, "--format", "jsonl")
    assert printed.code == 0, printed.err
    assert len(printed.out.splitlines()) == len(list((data / "3").iterdir()))
    assert len(run("--quiet", "predict", model, "digits", "--batch-size", 256).out.splitlines()) == 1798


def test_a_name_that_is_a_formula_is_no_formula_in_csv(
    run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1.png", "@sum.png", "+x.png"):
        Path(name).write_bytes(next((data / "3").iterdir()).read_bytes())
    printed = run("predict", model, "=1+1.png", "@sum.png", "+x.png")
    assert [row[0] for row in csv.reader(printed.out.splitlines())][1:] == ["./=1+1.png", "./@sum.png", "./+x.png"]
    printed = run("predict", model, "=1+1.png", "@sum.png", "--format", "jsonl")
    assert json.loads(printed.out.splitlines()[0])["path"] == "=1+1.png"


def test_bad_images_stop_predict_or_are_counted(run, model: Path, data: Path, tmp_path: Path) -> None:
    (data / "3" / "bad.png").write_text("no image")
    out = tmp_path / "p.csv"
    printed = run("predict", model, data / "3", "--out", out)
    assert printed.code == 2
    assert "bad.png cannot be read" in printed.errors[0]
    assert not out.exists()
    assert not list(tmp_path.glob(".*.tmp"))
    printed = run("predict", model, data / "3", "--out", out, "--skip-bad", "--batch-size", 4)
    assert printed.code == 0
    assert "1 unreadable images left out" in printed.err
    assert "bad.png" in printed.err
    good = len(list((data / "3").iterdir())) - 1
    assert len(out.read_text().splitlines()) == good + 1
    assert "bad.png" not in out.read_text()


REFUSED = {
    "unknown ending": (["predict", "{model}", "{data}", "--out", "p.txt"], "does not say the format"),
    "parquet to the terminal": (["predict", "{model}", "{data}", "--format", "parquet"], "--out FILE.parquet"),
    "two folders": (["predict", "{model}", "{data}/3", "{data}/4"], "is a folder among several paths"),
    "no such image": (["predict", "{model}", "gone.png"], "does not exist"),
    "no such data": (["predict", "{model}", "gone"], "There is no"),
    "no model": (["evaluate", "{data}", "{data}"], "There is no tuned model"),
    "no test part": (["evaluate", "{model}", "{data}", "--split", "test"], "measure all with --split all"),
    "no adapter": (["export", "{model}", "--to", "peft", "--out", "a"], "This model has no adapter"),
    "out exists": (["export", "{model}", "--to", "timm", "--out", "{data}"], "exists already"),
    "unknown backbone": (["embed", "vit_smal_patch14_dinov2", "{data}", "--out", "e"], "vit_small_patch14_dinov2"),
    "another size": (["embed", "{model}", "{data}", "--out", "e", "--size", "64"], "takes images of 32 px"),
    "nothing to prune": (["cache", "prune"], "Nothing says what to remove"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(run, case: str, model: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = REFUSED[case]
    printed = run(*(a.format(model=model, data=data) for a in arguments))
    assert printed.code == 2, printed.err
    assert len(printed.errors) == 1
    assert message in printed.errors[0]


def test_evaluate_prints_a_table_and_writes_records(run, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.jsonl"
    printed = run("evaluate", model, data, "--per-class", "--against", model, "--out", out)
    assert printed.code == 0, printed.err
    assert "balanced accuracy" in printed.out
    assert "difference" in printed.out
    assert "recall" in printed.out
    records = read_results(out)
    assert [r.metric for r in records[:5]] == ["error", "accuracy", "balanced_accuracy", "macro_f1", "ece"]
    assert {r.n for r in records} == {120}
    assert all(r.value == 0 for r in records if r.metric.endswith("_difference"))


def test_embed_and_export_say_what_they_wrote(run, model: Path, data: Path, tmp_path: Path) -> None:
    printed = run("embed", model, data, "--out", tmp_path / "e.npy")
    assert printed.code == 0, printed.err
    assert "120 embeddings of 64 numbers" in printed.out
    assert np.load(tmp_path / "e.npy").shape == (120, 64)
    printed = run("export", model, "--to", "timm", "--out", tmp_path / "t")
    assert printed.code == 0, printed.err
    assert "timm.create_model" in printed.out
    assert (tmp_path / "t" / "config.json").is_file()
