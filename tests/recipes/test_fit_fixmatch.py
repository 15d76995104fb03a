"""The rivals through `tune`: in the table, saved and loaded; FixMatch's temperature and threshold are chosen and said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keepsight.core import Dataset
from keepsight.data.load import load_dataset
from keepsight.data.subset import subset
from keepsight.export.model import TunedModel
from keepsight.heads.load import head_kind
from keepsight.recipes.run import tune

FEW = {"views": 1, "reduced": 16}
SHORT = {"token": FEW, "least_steps": 30, "epochs": 1, "search": {"steps": 3}}
SETTINGS: dict[str, Any] = {
    "seeds": 1,
    "selection_folds": 0,
    "readout": "5:mean",
    "backbone": {"name": "test_vit3", "weights": "random", "size": 32},
    "self_training": FEW,
    "gaussian_mixture": FEW,
    "fixmatch": SHORT,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "fixmatch-cache"))


@pytest.fixture(scope="module")
def few() -> Dataset:
    return subset(load_dataset("digits"), np.arange(300))


def test_the_rivals_are_in_the_table_and_their_models_load(
    few: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"self-training": "linear", "gaussian-mixture": "gaussian", "fixmatch": "mlp"}
    split = {"labels": 30, "test": 60}
    with caplog.at_level(logging.INFO):
        run = tune(few, out=tmp_path / "run", methods=list(kinds), split=split, **SETTINGS)
    errors = {r.method: r.value for r in run.results if r.metric == "error" and r.seed is None}
    assert errors.keys() == kinds.keys()
    assert max(errors.values()) < 0.85  # chance is 0.9
    for method, kind in kinds.items():
        folder = tmp_path / f"run/cells/{method}/seed-0"
        assert head_kind(TunedModel.load(folder / "model").head) == kind
    said = [r.getMessage() for r in caplog.records if "by accuracy on hidden labels" in r.getMessage()]
    assert len(said) == 1
    assert "(0.5, 0.9): " in said[0]


def test_one_label_a_class_and_the_backbone_trained(
    few: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = {**SHORT, "batch_size": 4, "unlabelled_batch_size": 8, "least_steps": 10}
    split = {"labels": 10, "test": 270}
    with caplog.at_level(logging.INFO):
        tune(few, out=tmp_path / "run", methods=["fixmatch-lora"], split=split, **SETTINGS, fixmatch_lora=short)
    assert TunedModel.load(tmp_path / "run/cells/fixmatch-lora/seed-0/model").adapter is not None
    assert any("temperature 0.3 and threshold 0.8 are the settings' own" in r.getMessage() for r in caplog.records)
