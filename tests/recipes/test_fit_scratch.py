"""The small CNN as a method of a run: it learns, it is saved and read back, and the run's backbone does not matter to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import keepsight
from keepsight.core.result import read_results
from keepsight.export.model import TunedModel

DIGITS = load_digits()
PIXELS = (DIGITS.images * 15).astype(np.uint8)
SETTINGS: dict[str, Any] = {
    "methods": ["cnn"],
    "backbone": {"name": "test_vit", "weights": "random", "size": 32},
    "readout": "1:mean",
    "seeds": 1,
    "split": {"labels": 60, "test": 200},
    "cnn": {"width": 16, "epochs": 2, "steps": 60, "batch_size": 16},
}


def error(run: keepsight.Run) -> float:
    return next(r.value for r in read_results(run.path / "results.jsonl") if r.metric == "error" and r.seed is None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> keepsight.Run:
    return keepsight.tune((PIXELS[:500], DIGITS.target[:500]), out=tmp_path_factory.mktemp("run") / "a", **SETTINGS)


def test_it_learns_from_sixty_labels(finished: keepsight.Run) -> None:
    assert error(finished) < 0.5  # nine in ten would be chance


def test_the_saved_model_is_whole(finished: keepsight.Run) -> None:
    model = TunedModel.load(finished.path)
    assert (model.method, model.backbone.name, str(model.readout)) == ("cnn", "small_cnn", "3:grid3")
    right = np.array(model.predict(PIXELS[600:900]).labels) == DIGITS.target[600:900].astype(str)
    assert right.mean() > 0.5
    record = read_results(finished.path / "results.jsonl")[0]
    assert record.trainable_parameters == sum(
        p.numel() for p in [*model.backbone.parameters(), *model.head.parameters()]
    )


def test_it_is_the_same_whatever_the_backbone_and_differs_with_augmentation(
    finished: keepsight.Run, tmp_path: Path
) -> None:
    data = (PIXELS[:500], DIGITS.target[:500])
    other = {**SETTINGS, "backbone": {"name": "test_convnext", "weights": "random", "size": 32}, "readout": "2:mean"}
    again = keepsight.tune(data, out=tmp_path / "b", **other)
    assert again.model.backbone.weights_hash() == finished.model.backbone.weights_hash()
    plain = {**SETTINGS, "cnn": {**SETTINGS["cnn"], "augmentation": None}}
    without = keepsight.tune(data, out=tmp_path / "c", **plain)
    assert without.model.backbone.weights_hash() != finished.model.backbone.weights_hash()


def test_few_images_get_the_least_number_of_steps_and_many_get_their_epochs(tmp_path: Path) -> None:
    steps = []
    for number, cnn in enumerate(({"epochs": 1, "steps": 3}, {"epochs": 2, "steps": 3})):
        settings = {**SETTINGS, "split": {"labels": 20, "test": 0}, "cnn": {"width": 8, "batch_size": 8, **cnn}}
        run = keepsight.tune((PIXELS[:60], DIGITS.target[:60]), out=tmp_path / str(number), **settings)
        steps.append((run.path / "cells/cnn/seed-0/cell.json").read_text())
    assert '"steps": 3' in steps[0]
    assert '"steps": 6' in steps[1]
