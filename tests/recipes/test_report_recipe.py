"""keepsight report: pages again from records, several runs in pairs, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from keepsight.core import Result, UserError
from keepsight.core.files import seal
from keepsight.recipes.folder import SEAL, is_finished
from keepsight.recipes.report import report
from keepsight.report.page import Table, read_page
from keepsight.report.tested_records import AnswerRecord, Answers, write_tested

PAGE = ("report.json", "report.html", "report.md")
N = 100


def finished(folder: Path, wrong: list[int], keys: list[str] | None = None, data: str = "leaves") -> Path:
    folder.mkdir(parents=True)
    share = len(wrong) / N
    record = Result(
        task="classification",
        dataset=data,
        split="test",
        method="probe",
        backbone="tiny",
        readout="8:mean",
        metric="error",
        value=share,
        ci_low=max(0.0, share - 0.05),
        ci_high=share + 0.05,
        interval="bootstrap",
        n=N,
        labels=20,
        seed=None,
        seeds=1,
    )
    (folder / "results.jsonl").write_text(record.model_dump_json() + "\n")
    chosen = {"method": "probe", "why": "Recommended: probe.", "criterion": "rule"}
    (folder / "recommendation.json").write_text(json.dumps(chosen))
    keys = keys or [f"{i:016x}" for i in range(N)]
    labels = tuple(str(int(key, 16) % 3) for key in keys)
    write_tested(
        folder,
        AnswerRecord(keys=tuple(keys), labels=labels, answers=(Answers(method="probe", wrong={0: tuple(wrong)}),)),
    )
    report_of = report_sealed(folder)
    assert report_of
    return folder


def report_sealed(folder: Path) -> bool:
    seal(folder, ["results.jsonl", "recommendation.json", "tested.json"], SEAL)
    report([folder])
    seal(folder, ["results.jsonl", "recommendation.json", "tested.json", *PAGE], SEAL)
    return is_finished(folder)


def rows(page_folder: Path, section: str) -> tuple[tuple[str, ...], ...]:
    page = read_page(page_folder / "report.json")
    (table,) = [b for s in page.sections if s.title == section for b in s.blocks if isinstance(b, Table)]
    return table.rows


def test_a_page_from_records_is_the_page_from_its_json(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [1, 2, 3])
    before = {name: (run / name).read_bytes() for name in PAGE}
    report([run], tmp_path / "again")
    report([run / "report.json"], tmp_path / "from-json")
    for name in PAGE:
        assert (tmp_path / "again" / name).read_bytes() == before[name]
        assert (tmp_path / "from-json" / name).read_bytes() == before[name]


def test_a_lost_page_is_made_again_and_the_run_stays_finished(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [1])
    (run / "report.html").unlink()
    (run / "report.md").write_text("of another version")
    assert not is_finished(run)
    report([run])
    assert is_finished(run)
    (run / "results.jsonl").write_text((run / "results.jsonl").read_text() + "\n")
    report([run])
    assert not is_finished(run)  # damage of other files stays known


def test_runs_with_the_same_test_images_are_paired_whatever_their_order(tmp_path: Path) -> None:
    keys = [f"{i:016x}" for i in range(N)]
    first = finished(tmp_path / "a", list(range(30)), keys)
    order = np.random.default_rng(0).permutation(N)
    wrong = [int(np.flatnonzero(order == i)[0]) for i in range(10)]  # images 0 to 9, in another order
    second = finished(tmp_path / "b", wrong, [keys[i] for i in order])
    found = report([first, second], tmp_path / "both")
    (row,) = rows(tmp_path / "both", "In pairs")
    assert row[0] == "a - b"
    assert row[2].startswith("+20.0 points [+1")
    assert row[3:] == ("100", "1", f"{2 * 0.5**20:.2g}")
    assert "b" in found.page.answer
    assert "worse" in found.page.answer


def test_other_images_give_bounds_and_other_data_nothing(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", [1, 2])
    second = finished(tmp_path / "b", [1, 2], [f"{i:016x}" for i in range(1, N + 1)])
    third = finished(tmp_path / "c", [1], data="cells", keys=[f"{i:016x}" for i in range(500, 500 + N)])
    report([first, second, third], tmp_path / "all")
    (row,) = rows(tmp_path / "all", "In pairs")
    assert row[:4] == ("a - b", "probe - probe", "+0.0 points [-7.0, +7.0]", "not the same images")
    assert len(rows(tmp_path / "all", "Runs")) == 3


def test_fifty_runs_make_one_page(tmp_path: Path) -> None:
    first = finished(tmp_path / "r0", list(range(10)))
    for i in range(1, 50):
        shutil.copytree(first, tmp_path / f"r{i}")
    report(sorted(p for p in tmp_path.iterdir() if p.is_dir()), tmp_path / "out")
    assert len(rows(tmp_path / "out", "Runs")) == 50
    assert len(rows(tmp_path / "out", "In pairs")) == 50 * 49 // 2


def test_what_is_no_finished_run_is_one_sentence(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [1])
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "text.json").write_text("{}")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / SEAL).unlink()
    for path, words in (
        (empty, "no finished run"),
        (tmp_path / "nowhere", "There is no folder"),
        (tmp_path / "text.json", "is no report"),
        (unfinished, "is not finished"),
    ):
        with pytest.raises(UserError, match=words):
            report([path], tmp_path / "out")
        with pytest.raises(UserError, match=words):
            report([run, path], tmp_path / "out")
    with pytest.raises(UserError, match="something else than a report"):
        report([run, run], tmp_path / "unfinished")
    assert not (tmp_path / "out").exists()
