"""`keepsight report`: a lost page again, several runs on one page, and one sentence for what is no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

BACKBONE = ["backbone.name=test_vit", "backbone.weights=random", "--size", "32", "readout=2:mean"]


@pytest.fixture
def runs(run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two finished runs on the same test images."""
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    made = []
    for method in ("knn", "probe"):
        made.append(tmp_path / method)
        words = ["--methods", method, "--seeds", 1, "--test", 30, "--out", made[-1]]
        assert run("tune", data, *words, *BACKBONE).code == 0
    return made


def test_pages_are_made_again_and_together(run, runs: list[Path], tmp_path: Path) -> None:
    page = runs[0] / "report.html"
    whole = page.read_bytes()
    page.unlink()
    printed = run("report", runs[0])
    assert printed.code == 0, printed.err
    answer, where = printed.out.splitlines()
    assert answer == json.loads((runs[0] / "report.json").read_text(encoding="utf-8"))["answer"]
    assert where == f"Report {page}"
    assert page.read_bytes() == whole

    out = tmp_path / "both"
    printed = run("report", *runs, "--out", out)
    assert printed.code == 0, printed.err
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "knn" in text
    assert "probe" in text
    assert "McNemar" in text  # tested on the same images: paired

    other = tmp_path / "copy"
    assert run("report", out / "report.json", "--out", other).code == 0
    assert (other / "report.html").read_bytes() == (out / "report.html").read_bytes()


def test_what_is_no_run_is_one_sentence(run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for word in ("empty", "nowhere"):
        printed = run("report", tmp_path / word)
        assert printed.code == 2
        assert len(printed.errors) == 1
        assert word in printed.errors[0]
