"""Comparisons with planted candidates: who stops, who is kept, what a kill, a budget and a limit change."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keepsight.core import CollapsedError, Dataset, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.methods.frozen import KNN
from keepsight.recipes import cells, compare_book, compare_finals
from keepsight.recipes import compare as compare_module
from keepsight.recipes.compare import compare
from keepsight.recipes.compare_config import LadderConfig, ladder_config, seconds_of
from keepsight.recipes.config import METHODS
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.fit_frozen import fit_frozen
from keepsight.recipes.run import Run, tune
from keepsight.report.ladder_records import LadderRecord, read_ladder

Errors = dict[str, float]
Hook = Callable[[Cell], None]


@pytest.fixture(autouse=True)
def _blobs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five classes of 40 noisy images; the cache is shared, since features do not depend on a test."""
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "compare-cache"))
    labels = np.arange(200) % 5
    pixels = np.random.default_rng(0).integers(0, 90, (200, 16, 16))
    pixels[np.arange(200), labels * 3] += 150
    dataset = Dataset(
        "blobs", ArrayImages(pixels.astype(np.uint8)), labels.astype(np.int64), tuple("abcde"), ("",) * 200
    )
    monkeypatch.setattr(compare_module, "load_dataset", lambda *_: dataset)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Cell]]:
    """Every method becomes k-NN whose predictions have a planted error; the cells that were fitted are listed."""

    def start(errors: Errors, hook: Hook = lambda cell: None) -> list[Cell]:
        seen: list[Cell] = []

        def fit(context: Context, cell: Cell) -> Fitted:
            hook(cell)
            seen.append(cell)
            found = fit_frozen(context, cell, KNN(context.config.knn))
            truth = context.dataset.labels[cell.measured_on]
            share = np.random.default_rng(7).permutation(len(truth)) / len(truth)  # the same images are hard for all
            said = np.where(share < errors[cell.title], (truth + 1) % 5, truth)
            return Fitted(found.model, lambda: np.eye(5, dtype=np.float32)[said], 1, steps=5)

        monkeypatch.setattr(cells, "_fits", lambda config: dict.fromkeys(METHODS, fit))
        return seen

    return start


def config(methods: str, retain: str = "none", **more: Any) -> LadderConfig:
    return ladder_config(
        "blobs",
        methods=methods,
        retain=retain,
        seeds=more.pop("seeds", 2),
        settings={
            "backbone": {"name": "test_vit", "weights": "random", "size": 32},
            "readout": "2:mean",
            "split": {"labels": 100, "test": 60, **more.pop("split", {})},
            "forgetting": {"measure": False},
            "trackers": [],
        },
        assignments=["selection_folds=3"],
        **more,
    )


def fates(run: Run) -> dict[str, tuple[str, str]]:
    return {c.name: (c.fate, c.rung) for c in read_ladder(run.path).candidates}


PLANTED: Errors = {
    "knn": 0.7,
    "probe": 0.3,
    "finetune-bitfit": 0.9,
    "finetune-lora": 0.35,
    "finetune-full": 0.4,
    "finetune-full+procrustes": 0.1,
}
WORDS = ("knn,probe,bitfit,lora,full", "none,procrustes")


def all_planted() -> Errors:
    return {**PLANTED, "finetune-bitfit+procrustes": 0.9, "finetune-lora+procrustes": 0.5}


def test_a_planted_loser_stops_early_and_a_planted_winner_is_recommended(plant: Any, tmp_path: Path) -> None:
    seen = plant(all_planted())
    run = compare(config(*WORDS), tmp_path / "run", command="keepsight compare blobs")
    assert run.recommended == run.model.method == "finetune-full+procrustes"
    found = fates(run)
    assert found["finetune-bitfit"] == found["finetune-bitfit+procrustes"] == ("stopped", "short 1/9")
    assert found["knn"] == ("stopped", "frozen")
    assert found["probe"] == ("measured", "test")
    assert found["finetune-full+procrustes"] == ("measured", "test")
    assert "finetune-bitfit (rung short 1/9)" in run.why
    measured = {r.method for r in run.results if r.split == "test"}
    assert measured == {name for name, (fate, _) in found.items() if fate == "measured"}
    (retained,) = {r.retain for r in run.results if r.method == "finetune-full+procrustes"}
    assert retained == "procrustes"
    assert not [c for c in seen if c.method == "finetune-bitfit" and not c.name.startswith("short-1-9")]
    learnt = defaultdict(set)
    for cell in seen:
        learnt[cell.name].add((cell.labelled.tobytes(), cell.measured_on.tobytes(), cell.seed))
    assert all(len(images) == 1 for images in learnt.values())  # the same images for every candidate
    record = read_ladder(run.path)
    assert record.command == "keepsight compare blobs"
    assert [rung.name for rung in record.rungs] == ["frozen", "short 1/9", "short 1/3", "full", "test"]
    assert all(rung.finished for rung in record.rungs)
    again = compare(config(*WORDS), tmp_path / "run")
    assert again.why == run.why
    with pytest.raises(UserError, match="another configuration"):
        compare(config("probe,lora"), tmp_path / "run")
    with pytest.raises(UserError, match="holds a comparison"):
        tune(config(*WORDS).base, out=tmp_path / "run")


def plain(record: LadderRecord) -> dict[str, Any]:
    """Without what differs between any two runs."""
    text = record.model_copy(update={"used": 0.0}).model_dump(mode="json")
    for rung in text["rungs"]:
        for standing in rung["standings"]:
            standing.pop("seconds")
    return text


def test_a_killed_comparison_goes_on_to_the_same_records(plant: Any, tmp_path: Path) -> None:
    plant(all_planted())
    whole = compare(config(*WORDS, seeds=1), tmp_path / "whole")
    left = iter([5, 6, 9, 3])
    count = [next(left)]

    def kill(cell: Cell) -> None:
        count[0] -= 1
        if count[0] < 0:
            raise KeyboardInterrupt

    plant(all_planted(), kill)
    kills = 0
    while True:
        try:
            resumed = compare(config(*WORDS, seeds=1), tmp_path / "killed")
            break
        except KeyboardInterrupt:
            kills += 1
            count[0] = next(left, 1000)
    assert kills == 4
    assert plain(read_ladder(resumed.path)) == plain(read_ladder(whole.path))
    assert resumed.why == whole.why
    free = {"seconds": 0.0, "peak_mib": 0.0}
    assert [r.model_copy(update=free) for r in resumed.results] == [r.model_copy(update=free) for r in whole.results]


def test_a_budget_of_next_to_nothing_recommends_what_is_cheap(plant: Any, tmp_path: Path) -> None:
    seen = plant(all_planted())
    run = compare(config("probe,lora,full", budget="0.001s", seeds=1), tmp_path / "run")
    assert run.recommended == "probe"
    assert {cell.method for cell in seen} == {"probe"}
    found = fates(run)
    assert found["finetune-lora"] == found["finetune-full"] == ("not begun", "short 1/9")
    assert "for want of time: finetune-lora (rung short 1/9), finetune-full (rung short 1/9)" in run.why


def test_what_does_not_fit_is_not_begun_and_a_resumed_comparison_does_not_decide_otherwise(
    plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(compare_book.time, "monotonic", lambda: now[0])

    def slow(cell: Cell) -> None:
        now[0] += 100.0 if cell.method == "finetune-full" else 0.1
        if cell.name == "seed-0":
            raise KeyboardInterrupt

    plant({"probe": 0.3, "finetune-lora": 0.2, "finetune-full": 0.1}, slow)
    wanted = config("probe,lora,full", budget="150s", seeds=1)
    with pytest.raises(KeyboardInterrupt):
        compare(wanted, tmp_path / "run")
    before = read_ladder(tmp_path / "run")
    told = {(r.name, s.candidate): s.decision for r in before.rungs for s in r.standings}
    assert told["short 1/9", "finetune-full"] == "goes on"
    assert told["short 1/3", "finetune-full"] == "not begun"  # it took 100 s for less, and 50 s were left
    assert told["full", "finetune-lora"] == "goes on"
    assert before.used >= 100
    now[0] = 0.0  # another process has another clock
    plant({"probe": 0.3, "finetune-lora": 0.2, "finetune-full": 0.1})
    run = compare(wanted, tmp_path / "run")
    record = read_ladder(run.path)
    assert record.used >= 100
    assert fates(run)["finetune-full"] == ("not begun", "short 1/3")
    assert run.recommended == "finetune-lora"
    standing = next(s for s in record.rungs[2].standings if s.candidate == "finetune-full")
    assert standing.foreseen is not None
    assert standing.foreseen > 100
    assert "49 s of 2.5 min were left" in standing.reason


class Watched:
    """Every network that is not the untouched one lost 3 points."""

    sets = ()

    @classmethod
    def of_run(cls, context: Context) -> Watched:
        return cls()

    def change_of(self, backbone: Any, readout: Any) -> float:
        return -3.0


@pytest.mark.parametrize(("limit", "chosen"), [(1.0, "probe"), (3.0, "finetune-full")])
def test_what_forgets_too_much_is_not_recommended(
    plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, chosen: str
) -> None:
    monkeypatch.setattr(compare_finals, "Watched", Watched)
    plant({"probe": 0.3, "finetune-full": 0.1})
    run = compare(config("probe,full", limit=limit, seeds=1), tmp_path / "run")
    assert run.recommended == chosen
    full = read_ladder(run.path).candidate("finetune-full")
    assert (full.loss, full.within) == (3.0, limit >= 3)
    assert ("Left out, since they lost more than 1 points" in run.why) == (chosen == "probe")


def test_where_all_forget_too_much_the_one_that_forgot_least_is_named(
    plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_finals, "Watched", Watched)
    plant({"finetune-lora": 0.3, "finetune-full": 0.1})
    run = compare(config("lora,full", limit=0.5, seeds=1), tmp_path / "run")
    assert run.recommended == "finetune-lora"  # a worse one does not stop: the better one may be left out
    assert "No candidate keeps within the limit" in run.why


def test_a_candidate_that_cannot_be_fitted_is_left_out(plant: Any, tmp_path: Path) -> None:
    def collapse(cell: Cell) -> None:
        if cell.method == "finetune-lora":
            raise CollapsedError("finetune-lora collapsed.")

    plant({"probe": 0.3, "finetune-full": 0.2}, collapse)
    run = compare(config("probe,lora,full", seeds=1), tmp_path / "run")
    assert fates(run)["finetune-lora"] == ("failed", "short 1/9")
    assert "Without a result: finetune-lora" in run.why

    def fail(cell: Cell) -> None:
        raise UserError("The loss is not finite.")

    plant({}, fail)
    with pytest.raises(UserError, match="No candidate could be measured: The loss is not finite"):
        compare(config("lora,full", seeds=1), tmp_path / "none")


def test_a_full_disk_is_no_fault_of_a_candidate(plant: Any, tmp_path: Path) -> None:
    def full(cell: Cell) -> None:
        raise UserError("Writing failed: make room.") from OSError(28, "No space left")

    plant({}, full)
    with pytest.raises(UserError, match="make room"):
        compare(config("probe,lora", seeds=1), tmp_path / "run")
    assert "failed" not in json.dumps(plain(read_ladder(tmp_path / "run"))["rungs"])


def test_with_one_label_a_class_nothing_stops_before_the_test(plant: Any, tmp_path: Path) -> None:
    plant({"probe": 0.5, "finetune-full": 0.1})
    run = compare(config("probe,full", split={"labels": 5}, seeds=1), tmp_path / "run")
    assert set(fates(run).values()) == {("measured", "test")}
    assert run.recommended == "probe"
    assert "by rule" in run.why
    assert read_ladder(run.path).held_out == "nothing"


def test_a_validation_part_decides_where_there_are_no_folds(plant: Any, tmp_path: Path) -> None:
    seen = plant({"probe": 0.5, "finetune-full": 0.1})
    wanted = config("probe,full", split={"validation": 0.3}, seeds=1)
    wanted = wanted.model_copy(update={"base": wanted.base.model_copy(update={"selection_folds": 0})})
    run = compare(wanted, tmp_path / "run")
    assert run.recommended == "finetune-full"
    assert "30 validation images" in run.why
    assert {r.split for r in run.results} == {"test", "validation"}
    assert not any(len(cell.validation) for cell in seen if cell.name.endswith("validation"))


def test_candidates_and_words() -> None:
    found = config("content-style-lora,lora,cnn,probe", "none,wise-ft,wise-ft:0.3,soup:2")
    assert [c.name for c in found.candidates] == [
        "probe",
        "cnn",
        "finetune-lora",
        "finetune-lora+wise-ft",
        "finetune-lora+wise-ft:0.3",
        "finetune-lora+soup:2",
        "content-style-lora",
        "content-style-lora+wise-ft:0.3",
    ]
    assert len(found.notes) == 2
    assert [len(c.alphas) for c in found.candidates] == [0, 0, 0, 11, 1, 0, 0, 0]
    assert ladder_config("demo").budget == 420
    assert seconds_of("1h 1m 1s") == 3661
    for text in ("", "30", "0s", "-3m", "m", "3d"):
        with pytest.raises(UserError, match="--budget takes a time"):
            seconds_of(text)
