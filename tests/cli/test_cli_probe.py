"""keepsight probe in this process: one real probe on a small network, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepsight.cli.complete import probe_names

RANDOM = ("loading.weights=random", "suite=[digits]", "knn.sets.per_set=100", "knn.sets.least=5", "knn.sets.size=16")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


def test_a_probe_prints_its_table_and_its_page(run, tmp_path: Path) -> None:
    printed = run("probe", "test_vit", *RANDOM, "--probes", "knn", "--against", "random", "--out", tmp_path / "out")
    assert printed.code == 0, printed.err
    assert "difference" in printed.out
    assert "+0.0 [+0.0, +0.0]" in printed.out  # random weights against the same random weights
    assert str(tmp_path / "out" / "report.html") in printed.out
    assert (tmp_path / "out" / "report.html").is_file()
    again = run("probe", "test_vit", *RANDOM, "--probes", "knn", "--against", "random", "--out", tmp_path / "out")
    assert again.out == printed.out
    assert "finished already" in again.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("probe", "test_vit", "--probes", "ocr,nothing"), "There is no probe 'nothing'"),
        (("probe", "no_such_vit"), "There is no backbone called 'no_such_vit'"),
        (("probe", "test_vit", "ocrr.size=4"), "There is no setting 'ocrr': did you mean 'ocr'?"),
        (("probe",), "The argument BACKBONE_OR_MODEL is missing"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    more = () if len(arguments) == 1 else ("--out", tmp_path / "out")
    printed = run(*arguments, *more)
    assert printed.code == 2
    assert len(printed.errors) == 1
    assert said in printed.err.replace("\n", " ")


def test_a_folder_of_something_else_is_refused(run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    printed = run("probe", "test_vit", *RANDOM, "--probes", "knn", "--out", tmp_path / "out")
    assert printed.code == 2
    assert "holds no run of probes" in printed.err.replace("\n", " ")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_completion_names_probes() -> None:
    assert probe_names("ocr,g") == ["ocr,goi"]
    assert "ocr,ocr" not in probe_names("ocr,")
