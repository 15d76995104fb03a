"""Sweeps on real digits with a small network: records and table are right, a kill loses nothing, failures are said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from scipy import stats

import keepsight.recipes.sweep as sweep_module
from keepsight.core import Result, UserError
from keepsight.data.limit import limited
from keepsight.data.load import load_dataset
from keepsight.data.splits import SplitConfig
from keepsight.features.extract import Extractor
from keepsight.recipes import cells
from keepsight.recipes.config import METHODS, TRAINABLE, resolve
from keepsight.recipes.sweep import Sweep, sweep_label_counts
from keepsight.recipes.sweep_config import SweepConfig, chosen_methods, family, sweep_config
from keepsight.recipes.sweep_points import views_of
from keepsight.report.sweep import read_tables

SETTINGS = ["backbone.weights=random", "readout=3:mean", "split.test=150"]
WORDS = ["--backbone", "test_vit", "--size", "32", "--labels", "10,30", "--seeds", "3", "--pool", "300"]
METHOD_NAMES = ("knn", "probe", "label-propagation")


def small(
    data: str = "digits", labels: str = "10,30", methods: str = "knn,probe,label-propagation", **more: Any
) -> SweepConfig:
    given = {
        "backbones": "test_vit",
        "sizes": "32",
        "pool": 300,
        "settings": {"seeds": 3},
        "assignments": SETTINGS,
        **more,
    }
    return sweep_config(data, labels=labels, methods=methods, **given)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEEPSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return sweep_label_counts(small(), tmp_path_factory.mktemp("sweep") / "out", jobs=1, command="keepsight sweep")


def point(sweep: Sweep, labels: int) -> Path:
    return sweep.path / "digits" / "test_vit-32" / f"labels-{labels}"


def same(results: list[Result]) -> list[dict[str, Any]]:
    """What must not depend on how the cells were computed."""
    return [r.model_dump(exclude={"seconds", "peak_mib"}) for r in results]


def errors(sweep: Sweep, labels: int, method: str) -> np.ndarray:
    """Error of every seed, from the saved probabilities and the data alone."""
    splits = json.loads((point(sweep, labels) / "splits.json").read_text())
    dataset = limited(load_dataset("digits"), SplitConfig(test=150), 300)
    truth = dataset.labels[splits["test"]]
    found = []
    for seed in range(3):
        p = np.load(point(sweep, labels) / "cells" / method / f"seed-{seed}" / "probabilities.npy")
        found.append(np.mean(p.argmax(axis=1) != truth))
    return np.array(found)


def test_records_and_table_hold_what_the_cells_predicted(finished: Sweep) -> None:
    (table,) = read_tables(finished.path)
    assert (table.labels, table.n, table.seeds, table.methods) == ([10, 30], 150, 3, list(METHOD_NAMES))
    for labels in (10, 30):
        for method in METHOD_NAMES:
            expected = errors(finished, labels, method)
            record = table.summary(method, labels)
            assert record is not None
            assert record.value == pytest.approx(expected.mean())
            assert (record.interval, record.size, record.labels) == ("seeds+bootstrap", 32, labels)
            assert record.ci_low < record.value < record.ci_high
            assert f"{100 * expected.mean():.1f} [" in table.error_text(method, labels)[0]
    assert {r.metric for r in finished.results} == {"error", "accuracy", "balanced_accuracy", "macro_f1", "ece"}
    assert len(finished.results) == 2 * 3 * 5 * (3 + 1)


def test_paired_differences_are_those_of_a_paired_t_test(finished: Sweep) -> None:
    (table,) = read_tables(finished.path)
    first, second = errors(finished, 30, "knn"), errors(finished, 30, "label-propagation")
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    found = table.difference("knn", "label-propagation", 30)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.value == pytest.approx((first - second).mean())
    assert found.excludes_zero == (expected.pvalue < 0.05)
    means = {m: errors(finished, 30, m).mean() for m in METHOD_NAMES}
    assert table.best(30) == min(means, key=lambda m: means[m])
    assert table.reference(30) == table.best(30)
    assert table.reference(30, "knn") == "knn"


def test_the_folder_is_laid_out_as_a_run_and_draws_are_nested(finished: Sweep) -> None:
    few, many = (json.loads((point(finished, n) / "splits.json").read_text()) for n in (10, 30))
    assert few["test"] == many["test"]
    for a, b in zip(few["draws"], many["draws"], strict=True):
        assert set(a["labelled"]) < set(b["labelled"])
        assert len(a["labelled"]) + len(a["unlabelled"]) == 300
    config = resolve("digits", file=point(finished, 30) / "config.yaml")
    assert (config.split.labels, config.backbone.size, config.data) == (30, 32, "digits")
    assert json.loads((point(finished, 10) / "readout.json").read_text())["criterion"] == "as configured"
    assert {p.name for p in finished.path.iterdir()} >= {
        "sweep.json",
        "results.jsonl",
        "table.md",
        "table.txt",
        "report.html",
        "report.json",
        "report.md",
    }


def test_a_finished_sweep_is_not_run_again_and_another_one_is_refused(
    finished: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "checked", None)
    assert sweep_label_counts(small(), finished.path).results == finished.results
    with pytest.raises(UserError, match="holds a sweep with another configuration"):
        sweep_label_counts(small(labels="10,40"), finished.path)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds no sweep"):
        sweep_label_counts(small(), tmp_path)
    monkeypatch.undo()
    (tmp_path / "mine.txt").unlink()
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="Another process"):
        sweep_label_counts(small(), tmp_path)


def test_killed_with_workers_and_resumed(finished: Sweep, tmp_path: Path) -> None:
    """SIGKILL while workers fit: they go, too; what is finished stays as it is, and the records are those of one process."""
    out = tmp_path / "out"
    program = "import keepsight.recipes.sweep_workers as w; w.ALONE = 0; from keepsight.cli import main; main()"
    words = [
        "sweep",
        "label-counts",
        "digits",
        "--methods",
        ",".join(METHOD_NAMES),
        *WORDS,
        "--jobs",
        "2",
        "--out",
        str(out),
    ]
    started = subprocess.Popen(
        [sys.executable, "-c", program, *words, *SETTINGS], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 400
        while not (done := list(out.rglob("seed-*/COMPLETE"))):
            assert started.poll() is None, started.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        workers = psutil.Process(started.pid).children(recursive=True)
    finally:
        started.kill()
        started.communicate()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    times = {path: path.stat().st_mtime_ns for path in done}
    assert not (out / "results.jsonl").exists()
    resumed = sweep_label_counts(small(), out, jobs=1)
    assert {path: path.stat().st_mtime_ns for path in done} == times
    assert same(resumed.results) == same(finished.results)
    for path in out.rglob("probabilities.npy"):
        assert path.read_bytes() == (finished.path / path.relative_to(out)).read_bytes()
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_an_interrupt_ends_the_workers() -> None:
    program = (
        "import time, keepsight.recipes.sweep_workers as w\n"
        "w.ALONE = 0\n"
        "for done in w.in_parallel(time.sleep, [0.01, 100, 100], 2): print('begun', flush=True)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == b"begun\n"
        workers = psutil.Process(started.pid).children(recursive=True)
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert started.wait(120) != 0
        assert not psutil.wait_procs(workers, timeout=120)[1]
    finally:
        started.kill()
        started.communicate()


def test_a_failing_cell_is_recorded_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fitted = cells._compute, []

    def compute(context: Any, cell: Any, folder: Path) -> None:
        fitted.append((cell.method, cell.seed))
        if cell.method == "knn" or (cell.method == "probe" and cell.seed == 1):
            raise UserError(f"The training collapsed <{cell.method}>.")
        real(context, cell, folder)

    monkeypatch.setattr(cells, "_compute", compute)
    config = small(labels="20", methods="knn,probe", settings={"seeds": 2})
    found = sweep_label_counts(config, tmp_path, jobs=1)
    assert fitted == [("knn", 0), ("knn", 1), ("probe", 0), ("probe", 1)]
    assert [(f.method, f.seed, f.labels) for f in found.failures] == [("knn", 0, 20), ("knn", 1, 20), ("probe", 1, 20)]
    (table,) = read_tables(tmp_path)
    assert table.error_text("knn", 20) == ("failed", "")
    assert table.error_text("probe", 20)[1].endswith("1 of 2 seeds failed")
    assert "The training collapsed &lt;knn&gt;." in (tmp_path / "report.html").read_text()
    assert "seed 1: The training collapsed <knn>." in (tmp_path / "table.txt").read_text()
    monkeypatch.setattr(cells, "_compute", lambda *a: (fitted.append((a[1].method, a[1].seed)), real(*a)))
    fitted.clear()
    again = sweep_label_counts(config, tmp_path, jobs=1)
    assert fitted == [("knn", 0), ("knn", 1), ("probe", 1)]
    assert not again.failures
    assert read_tables(tmp_path)[0].error_text("knn", 20)[0] != "failed"


def test_readout_is_chosen_and_all_features_are_there_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_fit, real_extract, fitting = sweep_module._fit_all, Extractor._extract, []

    def extract(self: Extractor, missing: dict[bytes, int], parts: Any) -> None:
        assert not (fitting and missing)
        real_extract(self, missing, parts)

    def fit_all(*given: Any) -> Any:
        fitting.append(True)
        return real_fit(*given)

    monkeypatch.setattr(Extractor, "_extract", extract)
    monkeypatch.setattr(sweep_module, "_fit_all", fit_all)
    assignments = ["backbone.weights=random", "split.test=40", "view_propagation.views=2"]
    config = small(labels="20", methods="view-propagation", pool=60, settings={"seeds": 1}, assignments=assignments)
    found = sweep_label_counts(config, tmp_path, jobs=1)
    assert fitting
    choice = json.loads((point(found, 20) / "readout.json").read_text())
    assert len(choice["scores"]) > 5
    assert {r.readout for r in found.results} != {"3:mean"}
    assert not found.failures


def test_views_are_found_wherever_the_settings_have_them() -> None:
    config = resolve(
        "x", assignments=["methods=[view-propagation,label-propagation,finetune-lora]", "finetune_lora.views=3"]
    )
    assert [number for number, _ in views_of(config)] == [1, 2, 3, 4, 5, 6]
    assert views_of(resolve("x", assignments=["methods=[probe]"])) == []
    assert len(views_of(resolve("x", assignments=["methods=[auto]", "auto.candidates=[probe,view-propagation]"]))) == 6
    nested = [number for number, _ in views_of(resolve("x", assignments=["methods=[content-style]"]))]
    assert nested == list(range(1, len(nested) + 1))
    assert nested


def test_auto_comes_last_and_takes_the_fits_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fitted = cells._compute, []

    def compute(context: Any, cell: Any, folder: Path) -> None:
        fitted.append((cell.method, cell.name))
        real(context, cell, folder)

    monkeypatch.setattr(cells, "_compute", compute)
    assignments = [*SETTINGS, "auto.candidates=[knn,label-propagation]"]
    config = small(labels="10", methods="knn,auto,label-propagation", settings={"seeds": 1}, assignments=assignments)
    found = sweep_label_counts(config, tmp_path, jobs=1)
    assert not found.failures
    assert fitted[:3] == [("knn", "seed-0"), ("label-propagation", "seed-0"), ("auto", "seed-0")]
    assert [name for _, name in fitted].count("seed-0") == 3


def test_families_follow_the_methods() -> None:
    both = chosen_methods(None, frozen=True, trainable=True)
    assert both == METHODS
    assert set(chosen_methods(None, frozen=False, trainable=True)) == set(TRAINABLE)
    assert set(chosen_methods(None, frozen=False, trainable=False)) == set(METHODS) - set(TRAINABLE)
    assert family("finetune-lora") == "trainable"
    assert family("probe") == "frozen"
