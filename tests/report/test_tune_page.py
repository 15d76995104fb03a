"""The page of a run from planted records: 200 classes, a class without test images, 500 bad images, hostile names, old runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import Dataset, Result, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.splits import Draw, Splits
from keepsight.recipes.diagnosis import Outcomes, diagnose
from keepsight.report.diagnosis_records import ClassFacts, DataFacts, Diagnosis, read_diagnosis, write_diagnosis
from keepsight.report.loss_records import FitCurves, LossCurve, write_losses
from keepsight.report.page import Chart, Page, Pictures, Table, Text
from keepsight.report.run_records import RunNotes, write_notes
from keepsight.report.tune_page import tune_page

EVIL = ('<script>alert("x")</script>', "[bold]b", 'a "b",\nc', "\u202eright to left", "\U0001f98b")


def figure(method: str, value: float, split: str = "test", metric: str = "error") -> Result:
    return Result(
        task="classification",
        dataset=EVIL[0],
        split=split,
        method=method,
        backbone="tiny",
        readout="8:mean",
        metric=metric,
        value=value,
        ci_low=value / 2,
        ci_high=min(1.0, value * 1.5),
        interval="bootstrap",
        n=60,
        labels=60,
        seed=None if split == "test" else 0,
        seeds=1,
    )


def planted(k: int, seed: int = 0) -> tuple[Dataset, Splits]:
    rng = np.random.default_rng(seed)
    classes = (*EVIL, *(f"class {i}" for i in range(5, k)))[:k]
    per = max(120 // k, 3)
    labels = np.repeat(np.arange(k), per)
    images = ArrayImages(rng.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8))
    dataset = Dataset(EVIL[0], images, labels, classes, ("",) * len(labels))
    test = np.arange(0, len(labels), per)[1:]  # the first class is not in it
    rest = np.setdiff1d(np.arange(len(labels)), test)
    none = np.empty(0, np.int64)
    return dataset, Splits(test, (Draw(0, rest, none, none),), "")


def said(dataset: Dataset, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = len(dataset.classes)
    answer = np.where(rng.random(len(rows)) < share, dataset.labels[rows], rng.integers(0, k, len(rows)))
    return 0.8 * np.eye(k)[answer] + 0.2 / k


def run(folder: Path, k: int, skipped: int = 0) -> Diagnosis:
    dataset, splits = planted(k)
    rows = splits.draws[0].labelled
    methods = [
        Outcomes(
            name=name,
            tuned=name.startswith("finetune"),
            rows=rows,
            held_out=said(dataset, rows, share, 1),
            tested={0: said(dataset, splits.test, share, 2)},
        )
        for name, share in (("knn", 0.3), ("probe", 0.6), ("finetune-lora", 0.9))
    ]
    results = [figure(m.name, 0.2) for m in methods]
    results += [figure(m.name, 0.2, metric="ece") for m in methods]
    results += [figure(m.name, v, "cross-validation") for m, v in zip(methods, (0.7, 0.4, 0.1), strict=True)]
    facts = DataFacts(
        name=dataset.name,
        images=len(dataset.images),
        labelled=len(rows),
        validation=0,
        unlabelled=0,
        test=len(splits.test),
        classes=tuple(
            ClassFacts(name=name, labelled=2, validation=0, test=int(i > 0)) for i, name in enumerate(dataset.classes)
        ),
        split_seed=0,
        skipped=skipped,
        skipped_reasons=tuple(f"{EVIL[0]}{i}.png is damaged." for i in range(min(skipped, 50))),
        same_across=2,
    )
    made = diagnose(dataset, splits, methods, results, "finetune-lora", facts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in results))
    chosen = {"method": "finetune-lora", "why": "Recommended: finetune-lora.", "criterion": "cross-validation"}
    (folder / "recommendation.json").write_text(json.dumps(chosen))
    (folder / "environment.json").write_text(json.dumps({"keepsight": "1.2.3"}))
    (folder / "config.yaml").write_text("data: leaves\n")
    (folder / "command.txt").write_text("keepsight tune leaves\n")
    write_diagnosis(folder, made)
    write_notes(folder, RunNotes(without_result=("fixmatch collapsed.",)))
    curve = LossCurve(figure="loss", points=((1, 2.0), (2, 1.0)))
    write_losses(folder, [FitCurves(method="finetune-lora", fit="seed-0", curves=(curve,))])
    return made


def blocks(page: Page, title: str) -> list[Chart | Pictures | Table | Text]:
    return [b for s in page.sections if s.title == title for b in s.blocks if not hasattr(b, "shown")]


def test_the_sections_come_in_the_order_of_the_page(tmp_path: Path) -> None:
    run(tmp_path, 6)
    page = tune_page(tmp_path)
    assert (page.version, page.kind, page.title) == ("1.2.3", "tune", EVIL[0])
    assert [s.title for s in page.sections] == [
        "Gain against forgetting",
        "Methods",
        "Methods without a result",
        "Learning curves",
        "Calibration",
        "Confusion",
        "Most confident mistakes",
        "Probable label errors",
        "Data",
        "Limitations",
        "Doing it again",
    ]
    assert page.answer.startswith("finetune-lora") or page.answer.startswith("probe is as good")
    assert Page.model_validate_json(page.model_dump_json()) == page


def test_the_baseline_is_chosen_by_cross_validation_alone(tmp_path: Path) -> None:
    made = run(tmp_path, 6)
    assert (made.baseline, made.chosen_by, made.frozen) == ("probe", "cross-validation", ("knn", "probe"))
    assert {r.method for r in made.differences} == {"knn", "finetune-lora"}
    difference = made.difference("finetune-lora")
    assert difference is not None
    assert (difference.metric, difference.against) == ("error_change", "probe")
    assert difference.ci_low <= difference.value <= difference.ci_high
    assert read_diagnosis(tmp_path) == made


def test_confusion_counts_and_mistakes_are_those_of_the_predictions(tmp_path: Path) -> None:
    made = run(tmp_path, 6)
    dataset, splits = planted(6)
    answers = said(dataset, splits.test, 0.3, 2).argmax(axis=1)
    found = made.of("knn")
    assert found is not None
    counts = np.zeros((6, 6), int)
    for truth, answer in zip(dataset.labels[splits.test], answers, strict=True):
        counts[truth, answer] += 1
    np.testing.assert_array_equal(found.confusion, counts)
    assert found.wrong == (answers != dataset.labels[splits.test]).sum() == min(12, len(found.mistakes))
    assert all(m.picture is not None and m.said != m.truth for m in found.mistakes)


@pytest.mark.parametrize(("k", "bad"), [(6, 0), (200, 500)])
def test_many_classes_and_bad_images(tmp_path: Path, k: int, bad: int) -> None:
    run(tmp_path, k, bad)
    page = tune_page(tmp_path)
    lines = " ".join(b.text for b in blocks(page, "Limitations") if isinstance(b, Text))
    assert f"1 of {k} classes have no test image" in lines
    assert "n is small: 60" in lines
    assert "2 images are in two parts" in lines
    assert ("500 images" in lines) == (bad > 0)
    (table,) = [b for b in blocks(page, "Data") if isinstance(b, Table) and b.title == "Classes"]
    assert len(table.rows) == k
    assert any(isinstance(b, Chart) for b in blocks(page, "Confusion"))
    assert len(page.model_dump_json()) < 5_000_000


def test_doubted_labels_are_shown_with_pictures(tmp_path: Path) -> None:
    made = run(tmp_path, 6)
    assert made.label_errors is not None
    found = blocks(tune_page(tmp_path), "Probable label errors")
    pictures = [b for b in found if isinstance(b, Pictures)]
    assert len(pictures[0].pictures) == len(made.label_errors.listed) == min(24, made.label_errors.found) > 0


def test_a_run_without_the_new_records_has_a_page(tmp_path: Path) -> None:
    run(tmp_path, 6)
    for name in ("diagnosis.json", "losses.json", "notes.json", "command.txt", "environment.json"):
        (tmp_path / name).unlink()
    page = tune_page(tmp_path)
    assert {"Methods", "Limitations"} <= {s.title for s in page.sections}
    assert not {"Calibration", "Confusion"} & {s.title for s in page.sections}
    assert "against test error 20.0 %" in page.answer


def test_what_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        tune_page(tmp_path)
    run(tmp_path, 6)
    (tmp_path / "diagnosis.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        tune_page(tmp_path)


def test_an_image_that_is_gone_costs_its_picture_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: ArrayImages, index: int) -> Image.Image:
        raise UserError(f"{index} is gone.")

    monkeypatch.setattr(ArrayImages, "load", gone)
    made = run(tmp_path, 6)
    found = made.of("knn")
    assert found is not None
    assert found.mistakes
    assert all(m.picture is None for m in found.mistakes)
    assert any(isinstance(b, Table) for b in blocks(tune_page(tmp_path), "Most confident mistakes"))
