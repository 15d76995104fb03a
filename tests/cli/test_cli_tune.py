"""`tune` and what all commands share: help, one sentence and exit code 2 for bad input, real output for good input."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from keepsight.core.result import read_results
from keepsight.report.page import read_page

BACKBONE = ["backbone.name=test_vit", "backbone.weights=random", "--size", "32", "readout=2:mean"]


def test_tune_prints_a_table_and_predict_uses_the_model(run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = run("tune", data, "--methods", "knn,probe", "--seeds", 1, "--out", out, *BACKBONE)
    assert printed.code == 0, printed.err
    assert "Recommended:" in printed.out
    assert "probe" in printed.out
    assert "95 % interval" in printed.out
    printed = run("predict", out, data / "3")
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert len(rows) == len(list((data / "3").glob("*.png")))
    assert abs(sum(float(rows[0][f"p({k})"]) for k in range(10)) - 1) < 1e-4
    table = tmp_path / "p.csv"
    assert run("predict", out, *sorted((data / "3").glob("*.png"))[:2], "--out", table).code == 0
    assert len(table.read_text().splitlines()) == 3


def test_what_was_tuned_is_asked_probes_at_the_end(run, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    words = [
        "--methods",
        "probe,finetune-full",
        "--seeds",
        1,
        "--labels",
        30,
        "finetune_full.epochs=1",
        "selection_folds=0",
    ]
    words += [
        "forgetting.suite=[mnist-5k]",
        "forgetting.per_set=50",
        "forgetting.rule.folds=2",
        "--probes",
        "linear,knn",
    ]
    printed = run("tune", data, *words, "--out", out, *BACKBONE)
    assert printed.code == 0, printed.err
    assert [folder.name for folder in (out / "probe").iterdir()] == ["finetune-full"]  # the other one is frozen
    records = read_results(out / "probe" / "finetune-full" / "results.jsonl")
    assert {r.method for r in records if r.metric == "accuracy_change" and r.against == "untouched"} == {
        "knn",
        "linear",
    }
    titles = [section.title for section in read_page(out / "report.json").sections]
    assert "finetune-full: Probes before and after" in titles
    printed = run("tune", data, *words[:-1], "ocr,reading", "--out", tmp_path / "none", *BACKBONE)
    assert (printed.code, len(printed.errors)) == (2, 1)
    assert "There is no probe 'reading'" in printed.errors[0]
    assert not (tmp_path / "none").exists()


def test_dry_run_shows_settings_and_cost_and_writes_nothing(run, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run("tune", data, "--labels", 30, "--dry-run", *BACKBONE)
    assert printed.code == 0, printed.err
    assert "labels: 30" in printed.out
    assert "# seconds_finetuning:" in printed.out
    assert "# labelled: 30" in printed.out
    assert not (tmp_path / "runs").exists()
    config = tmp_path / "c.yaml"
    config.write_text(printed.out)
    assert run("tune", data, "--config", config, "--dry-run").out.splitlines()[:20] == printed.out.splitlines()[:20]


def test_backbones_lists_packaged_and_timm_names(run) -> None:
    printed = run("backbones", "imgfocus")
    assert "vit_s14_imgfocus" in printed.out
    assert "packaged" in printed.out
    assert "vit_small_patch16_dinov3" in run("backbones", "vit_small*dinov3*").out


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["tune"],
        ["predict"],
        ["evaluate"],
        ["embed"],
        ["export"],
        ["backbones"],
        ["data", "check"],
        ["cache", "prune"],
    ],
)
def test_help(run, command: list[str]) -> None:
    printed = run(*command, "--help")
    assert printed.code == 0
    assert "keepsight" in printed.out


def broken(data: Path) -> Path:
    (data / "0" / "broken.png").write_text("this is not an image")
    return data


def empty(data: Path) -> Path:
    (data.parent / "empty").mkdir()
    return data.parent / "empty"


def one_class(data: Path) -> Path:
    target = data.parent / "one" / "3"
    target.mkdir(parents=True)
    for path in (data / "3").glob("*.png"):
        (target / path.name).write_bytes(path.read_bytes())
    return target.parent


def pickled(data: Path) -> Path:
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("executed!",))

    path = data.parent / "evil.pth"
    path.write_bytes(pickle.dumps(Evil()))
    return path


BAD = {
    "no such data": (lambda d: ["tune", d / "missing"], "There is no folder"),
    "misspelt name": (lambda d: ["tune", "mnist5k"], "did you mean 'mnist-5k'"),
    "empty folder": (lambda d: ["tune", empty(d)], "holds no images"),
    "one class": (lambda d: ["tune", one_class(d)], "at least two"),
    "text named png": (lambda d: ["tune", broken(d), *BACKBONE], "broken.png cannot be read"),
    "unknown setting": (lambda d: ["tune", d, "sed=1"], "did you mean 'seeds'"),
    "unknown method": (lambda d: ["tune", d, "--methods", "magic"], "'magic' is wrong"),
    "wrong type": (lambda d: ["tune", d, "split.labels=few"], "split.labels='few' is wrong"),
    "too few labels": (lambda d: ["tune", d, "--labels", 3, *BACKBONE], "fewer than the 10 classes"),
    "too many test images": (lambda d: ["tune", d, "--test", 5000, *BACKBONE], "cannot be held out"),
    "unknown backbone": (lambda d: ["tune", d, "--backbone", "vit_smal_patch14_dinov2"], "vit_small_patch14_dinov2"),
    "wrong size": (lambda d: ["tune", d, "--backbone", "vit_s14_imgfocus", "--size", 50], "14"),
    "no such block": (lambda d: ["tune", d, *BACKBONE, "readout=99:cls"], "does not have"),
    "wrong readout": (lambda d: ["tune", d, "--readout", "8:gird2"], "is not understood"),
    "missing config": (lambda d: ["tune", d, "--config", d / "no.yaml"], "cannot be read"),
    "out is a file": (lambda d: ["tune", d, "--out", pickled(d)], "is a file"),
    "pickled code": (lambda d: ["tune", d, "--backbone", pickled(d), "backbone.architecture=test_vit"], "evil.pth"),
    "no model": (lambda d: ["predict", d, d / "3"], "There is no tuned model"),
    "no backbone matches": (lambda d: ["backbones", "no-such-thing"], "No backbone matches"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    run, case: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    printed = run(*arguments(data))
    assert printed.code == 2, printed.err
    said = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(said) == 1, printed.err
    assert message in said[0]
    assert "Traceback" not in printed.err
    assert "executed!" not in printed.out + printed.err


def test_debug_shows_the_traceback(run, data: Path) -> None:
    from keepsight.core import UserError

    with pytest.raises(UserError, match="There is no folder"):
        run("--debug", "tune", data / "missing")
