"""The list of runs: what is finished, unfinished, damaged or hostile stands in it, and nothing outside of the folders is read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from keepsight.core import Result
from keepsight.report import run_list
from keepsight.report.page import JSON, Listing, Page, Section, Table, Text
from keepsight.report.run_list import RunList, inside


def page(title: str, kind: str = "tune") -> Page:
    text = Text(text=f"about {title}")
    return Page(
        version="1",
        kind=kind,
        title=title,
        answer=f"{title} is fine.",
        sections=(Section(title="One", blocks=(text,)),),
    )


def write(folder: Path, title: str, kind: str = "tune") -> Path:
    folder.mkdir(parents=True)
    (folder / JSON).write_text(page(title, kind).model_dump_json())
    return folder


def result(metric: str, value: float, split: str = "test", method: str = "probe", dataset: str = "leaves") -> str:
    made = Result(
        task="classification",
        dataset=dataset,
        split=split,
        method=method,
        backbone="vit",
        readout="8:mean",
        metric=metric,
        value=value,
        ci_low=value - 0.01,
        ci_high=value + 0.01,
        interval="bootstrap",
        n=100,
        labels=10,
        seed=None,
        seeds=1,
    )
    return made.model_dump_json() + "\n"


def table_of(found: Page) -> Table:
    (table,) = [b for s in found.sections for b in s.blocks if isinstance(b, Table)]
    return table


def test_runs_are_listed_with_their_kind_data_figure_and_answer(tmp_path: Path) -> None:
    tuned = write(tmp_path / "a", "leaves")
    (tuned / "results.jsonl").write_text(result("error", 0.12) + result("error", 0.2, method="knn", dataset="more"))
    (tuned / "recommendation.json").write_text('{"method": "knn", "why": "", "criterion": ""}')
    scenes = write(tmp_path / "deep" / "b", "scenes", "visft")
    (scenes / "results.jsonl").write_text(result("box_ap50_change", 0.02, "test-seen", "detr visft", "scenes"))
    probed = write(tmp_path / "c", "probes", "probe")
    (probed / "results.jsonl").write_text(result("accuracy_change", 0.3) + result("cer_change", -0.005))
    (tuned / "forgetting").mkdir()
    (tuned / "forgetting" / JSON).write_text(page("inner").model_dump_json())  # a part of its run
    for age, folder in enumerate((probed, scenes, tuned)):
        os.utime(folder / JSON, (1e9 - age, 1e9 - age))
    runs = RunList([tmp_path])
    entries = runs.entries()
    assert [(e.name, e.kind, e.data, e.figure) for e in entries] == [
        ("c", "probe", "leaves", "1 better, 0 worse of 2"),
        ("deep/b", "visft", "scenes", "boxes, AP50: +2.0 [+1.0, +3.0] points"),
        ("a", "tune", "leaves, more", "knn: error 20.0 [19.0, 21.0] %"),
    ]
    made = runs.page("1")
    table = table_of(made)
    assert table.filtered
    assert table.links == tuple(f"run/{e.key}/report.html" for e in entries)
    assert table.rows[2][-1] == "leaves is fine."
    assert made.answer == f"3 finished runs below {tmp_path}."
    (board,) = [b for s in made.sections for b in s.blocks if isinstance(b, Listing)]
    assert board.text == f"tensorboard --logdir {tmp_path}"


def test_what_has_no_report_or_a_damaged_one_is_listed_with_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "good", "good")
    for name, text in (("cut", '{"version": "1", "ki'), ("other", "[1, 2]"), ("binary", "\ud800")):
        (tmp_path / name).mkdir()
        (tmp_path / name / JSON).write_text(text, errors="surrogatepass", encoding="utf-8")
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "visft.json").write_text("{}")
    (tmp_path / "running" / "results.jsonl").write_text("garbage")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / JSON).mkdir()  # a folder of that name
    (tmp_path / "odd" / "sweep.json").write_text("{}")
    (tmp_path / "pictures").mkdir()  # no run
    by = {e.name: e for e in RunList([tmp_path]).entries()}
    assert by.keys() == {"good", "cut", "other", "binary", "running", "odd"}
    assert [name for name, e in by.items() if e.sound] == ["good"]
    assert by["running"].kind == "visft"
    assert "not finished, or of an older version" in by["running"].answer
    assert "report.json is damaged" in by["cut"].answer
    table = table_of(RunList([tmp_path]).page("1"))
    assert sum(bool(link) for link in table.links) == 1


def test_long_answers_are_cut_and_short_ones_are_not(tmp_path: Path) -> None:
    for name, answer in (("a", "So it is; and " + "so on " * 60), ("b", "word " * 100), ("c", "This; all of it.")):
        folder = write(tmp_path / name, name)
        (folder / JSON).write_text(page(name).model_copy(update={"answer": answer}).model_dump_json())
    by = {row[0]: row[-1] for row in table_of(RunList([tmp_path]).page("1")).rows}
    assert by["a"] == "So it is"
    assert by["b"].endswith("word ...")
    assert len(by["b"]) <= run_list.ROOM
    assert by["c"] == "This; all of it."


def test_damaged_records_beside_a_report_cost_only_the_figure(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "leaves")
    (folder / "results.jsonl").write_bytes(b"\xff{")
    (folder / "recommendation.json").write_text("[]")
    (entry,) = RunList([tmp_path]).entries()
    assert (entry.sound, entry.data, entry.figure) == (True, "", "")


HOSTILE = (
    "<script>alert(1)</script>"[:8],
    "a b'\"&",
    "x..%2f..",
    "\u202eelif",
    "\U0001f600",
    "javascript:alert(1)",
    "-",
    "x\ny",
)


def test_hostile_names_are_texts_and_never_addresses(tmp_path: Path) -> None:
    for name in HOSTILE:
        write(tmp_path / name.replace("/", ""), name)
    unwritable = os.fsencode(tmp_path) + b"/\xff\xfe"  # no UTF-8
    write(Path(os.fsdecode(unwritable)), "bytes")
    runs = RunList([tmp_path])
    keys = [entry.key for entry in runs.entries()]
    assert len(set(keys)) == len(HOSTILE) + 1
    assert all(key.replace("-", "").isalnum() and key.isascii() for key in keys)
    runs.page("1").model_dump_json().encode()


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "run", "secret")
    root = tmp_path / "root"
    write(root / "real", "real")
    (root / "linked").symlink_to(secret, target_is_directory=True)
    (root / "file").mkdir()
    (root / "file" / JSON).symlink_to(secret / JSON)
    (root / "loop").symlink_to(root)
    (root / "round").mkdir()
    (root / "round" / JSON).symlink_to(root / "round" / JSON)
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / JSON)  # would be read for ever
    by = {e.name: e for e in RunList([root]).entries()}
    assert [name for name, e in by.items() if e.sound] == ["real"]
    assert "secret" not in RunList([root]).page("1").model_dump_json()
    assert inside(root, root / "real" / JSON) == root / "real" / JSON
    assert inside(root, root / "real" / ".." / ".." / "outside" / "run" / JSON) is None
    assert inside(root, root / "nothing") is None


def test_runs_that_finish_meanwhile_appear_and_others_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(tmp_path / f"run{number}", "leaves")
    read: list[str] = []
    real = run_list._read

    def counted(root: Path, folder: Path, name: str) -> run_list.Entry:
        read.append(name)
        return real(root, folder, name)

    monkeypatch.setattr(run_list, "_read", counted)
    runs = RunList([tmp_path])
    assert len(runs.entries()) == 3
    assert len(runs.entries()) == 3
    assert sorted(read) == ["run0", "run1", "run2"]
    write(tmp_path / "new", "new")
    (tmp_path / "run1" / JSON).write_text(page("changed").model_dump_json())
    assert {e.answer for e in runs.entries()} == {"leaves is fine.", "new is fine.", "changed is fine."}
    assert sorted(read[3:]) == ["new", "run1"]


def test_several_folders_and_a_run_itself(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a", "first")
    write(tmp_path / "two" / "a", "second")
    names = {e.name for e in RunList([tmp_path / "one", tmp_path / "two", tmp_path / "one"]).entries()}
    assert names == {"one/a", "two/a"}
    (alone,) = RunList([tmp_path / "one" / "a"]).entries()
    assert alone.name == "a"
    assert RunList([tmp_path / "two" / "a" / "nothing"]).entries() == []


def test_five_hundred_runs_are_listed_at_once(tmp_path: Path) -> None:
    for number in range(500):
        folder = write(tmp_path / f"run{number}", "leaves")
        (folder / "results.jsonl").write_text(result("error", 0.1) * 20)
    runs = RunList([tmp_path])
    start = time.process_time()
    assert len(table_of(runs.page("1")).rows) == 500
    assert time.process_time() - start < 5
    start = time.process_time()
    runs.page("1")
    assert time.process_time() - start < 1.5
