"""The page of a run from planted records: 200 classes, a class without test images, 500 bad images, hostile names, old runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data.arrays import ArrayImages
from keepsight.report.diagnosis_records import read_diagnosis
from keepsight.report.page import Chart, Page, Pictures, Table, Text
from keepsight.report.tune_page import tune_page
from run_parts import EVIL, planted, planted_run, said


def blocks(page: Page, title: str) -> list[Chart | Pictures | Table | Text]:
    return [b for s in page.sections if s.title == title for b in s.blocks if not hasattr(b, "shown")]


def test_the_sections_come_in_the_order_of_the_page(tmp_path: Path) -> None:
    planted_run(tmp_path, 6)
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
    made = planted_run(tmp_path, 6)
    assert (made.baseline, made.chosen_by, made.frozen) == ("probe", "cross-validation", ("knn", "probe"))
    assert {r.method for r in made.differences} == {"knn", "finetune-lora"}
    difference = made.difference("finetune-lora")
    assert difference is not None
    assert (difference.metric, difference.against) == ("error_change", "probe")
    assert difference.ci_low <= difference.value <= difference.ci_high
    assert read_diagnosis(tmp_path) == made


def test_confusion_counts_and_mistakes_are_those_of_the_predictions(tmp_path: Path) -> None:
    made = planted_run(tmp_path, 6)
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
    planted_run(tmp_path, k, bad)
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
    made = planted_run(tmp_path, 6)
    assert made.label_errors is not None
    found = blocks(tune_page(tmp_path), "Probable label errors")
    pictures = [b for b in found if isinstance(b, Pictures)]
    assert len(pictures[0].pictures) == len(made.label_errors.listed) == min(24, made.label_errors.found) > 0


def test_a_run_without_the_new_records_has_a_page(tmp_path: Path) -> None:
    planted_run(tmp_path, 6)
    for name in ("diagnosis.json", "losses.json", "notes.json", "command.txt", "environment.json"):
        (tmp_path / name).unlink()
    page = tune_page(tmp_path)
    assert {"Methods", "Limitations"} <= {s.title for s in page.sections}
    assert not {"Calibration", "Confusion"} & {s.title for s in page.sections}
    assert "against test error 20.0 %" in page.answer


def test_what_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        tune_page(tmp_path)
    planted_run(tmp_path, 6)
    (tmp_path / "diagnosis.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        tune_page(tmp_path)


def test_an_image_that_is_gone_costs_its_picture_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: ArrayImages, index: int) -> Image.Image:
        raise UserError(f"{index} is gone.")

    monkeypatch.setattr(ArrayImages, "load", gone)
    made = planted_run(tmp_path, 6)
    found = made.of("knn")
    assert found is not None
    assert found.mistakes
    assert all(m.picture is None for m in found.mistakes)
    assert any(isinstance(b, Table) for b in blocks(tune_page(tmp_path), "Most confident mistakes"))
