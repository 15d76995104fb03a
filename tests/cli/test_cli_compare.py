"""`keepsight compare retention`: one small comparison, and one sentence for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keepsight.core import UserError
from keepsight.data import demo
from keepsight.recipes import retention_fits

SMALL = ["backbone.weights=random", "finetune_full.epochs=1", "--methods", "finetune-full", "--readout", "2:mean"]
SMALL += [
    "--backbone",
    "test_vit",
    "--size",
    "32",
    "--labels",
    "20",
    "--test",
    "30",
    "--suite",
    "digits",
    "--per-set",
    "50",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


def test_compare_prints_tables_and_goes_on(run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def fit(*_: Any) -> None:
        raise UserError("The training collapsed.")

    with monkeypatch.context() as broken:
        broken.setattr(retention_fits, "fit_finetune", fit)
        printed = run("compare", "retention", data, *SMALL, "--retain", "distill", "--out", out)
    assert printed.code == 1
    assert "The training collapsed." in printed.out
    assert printed.errors == []
    printed = run("compare", "retention", data, *SMALL, "--retain", "distill", "--out", out)
    assert printed.code == 0, printed.err
    for part in ("What was learnt on data", "untouched", "none", "distill", "kept", "report.html"):
        assert part in printed.out
    page = (out / "report.html").read_text()
    assert "keepsight compare retention" in page
    assert "finetune_full.epochs=1" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "--retain", "procustes"], "did you mean procrustes?"),
        (["digits", "--methods", "knn"], "tune a backbone"),
        (["digits", "--suite", "nowhere-at-all", "--retain", "none"], "nowhere-at-all"),
        (["digits", "split.label=3"], "did you mean"),
        (["retain=procrustes"], "use --retain"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, tmp_path: Path, words: list[str], said: str) -> None:
    printed = run("compare", "retention", *words, "--out", tmp_path / "out")
    assert printed.code == 2
    assert len(printed.errors) == 1
    assert said in printed.errors[0]
    assert not (tmp_path / "out").exists()


def test_the_default_task_must_be_installed(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_FASHION_DIRECTORY", tmp_path / "missing")
    printed = run("compare", "retention", "--out", tmp_path / "out")
    assert printed.code == 2
    assert "not installed" in printed.errors[0]
    assert "compare retention mnist-5k" in printed.errors[0]
