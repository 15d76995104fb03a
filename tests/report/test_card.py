"""The model card: figures from the records, what was not measured said, and no name that becomes markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from keepsight.core import Result
from keepsight.report.card import CardFacts, write_card

NASTY = "<script>alert(1)</script> | [x](http://e)\n# heading `code` --- *b*"


def facts(**changes: Any) -> CardFacts:
    content: dict[str, Any] = {
        "version": "0.1.0",
        "dataset": "leaves",
        "images": 500,
        "labelled": 40,
        "validation": 0,
        "unlabelled": 260,
        "test": 200,
        "classes": ("oak", "elm"),
        "method": "probe",
        "why": "Recommended: probe.",
        "backbone": "vit_x",
        "licence": "apache-2.0",
        "readout": "8:grid2",
        "preprocessing": "RGB, 56 x 56 px",
        "parameters": 22_000_000,
    }
    return CardFacts(**{**content, **changes})


def record(**changes: Any) -> Result:
    content: dict[str, Any] = {
        "task": "classification",
        "dataset": "leaves",
        "split": "test",
        "method": "probe",
        "backbone": "vit_x",
        "readout": "8:grid2",
        "metric": "error",
        "value": 0.1234,
        "ci_low": 0.1,
        "ci_high": 0.15,
        "interval": "seeds+bootstrap",
        "n": 200,
        "labels": 40,
        "seed": None,
        "seeds": 3,
    }
    return Result(**{**content, **changes})


RESULTS = [
    record(),
    record(metric="accuracy", value=0.8766),
    record(seed=0, value=0.9),  # of one seed: not the summary
    record(method="knn", value=0.7),  # of another method
    record(split="cross-validation", seed=0, value=0.25, ci_low=0.2, ci_high=0.3, n=40),
]


def read(path: Path) -> tuple[dict[str, Any], str]:
    _, front, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_figures_come_from_the_records(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", facts(), RESULTS)
    front, body = read(tmp_path / "README.md")
    assert "| error | 12.3 | 10.0 to 15.0 |" in body
    assert "| accuracy | 87.7 |" in body
    assert "On 200 test images" in body
    assert "3 seeds" in body
    assert "Cross-validated error on 40 labelled images: 25.0 % (20.0 to 30.0)" in body
    assert "licence apache-2.0" in body
    assert "oak, elm" in body
    assert "90.0" not in body
    assert "70.0" not in body
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert metrics == [{"type": "error", "value": 0.1234}, {"type": "accuracy", "value": 0.8766}]
    assert front["pipeline_tag"] == "image-classification"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", facts(licence=None, test=0), [])
    front, body = read(tmp_path / "README.md")
    assert "The test error was **not measured**" in body
    assert "Not measured: the error on test images." in body
    assert "Not measured: the cross-validated error." in body
    assert "a licence that keepsight does not know" in body
    assert "model-index" not in front


@pytest.mark.parametrize("where", ["dataset", "backbone", "why", "readout", "classes"])
def test_names_are_escaped(where: str, tmp_path: Path) -> None:
    value: Any = (NASTY, "b") if where == "classes" else NASTY
    write_card(tmp_path / "README.md", facts(**{where: value}), RESULTS)
    front, body = read(tmp_path / "README.md")
    assert "<script>" not in body
    assert "\n# heading" not in body
    assert "[x](" not in body
    assert "`code`" not in body.replace("\\`", "")
    if where == "dataset":  # in YAML it is a value like any other
        assert front["model-index"][0]["results"][0]["dataset"]["name"] == NASTY


def test_many_classes_are_cut(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", facts(classes=tuple(f"class{i}" for i in range(120))), RESULTS)
    body = read(tmp_path / "README.md")[1]
    assert "class49, and 70 more" in body
    assert "class50" not in body
