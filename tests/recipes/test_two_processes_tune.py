"""`tune` under torchrun with two processes (gloo) gives the figures of one, for every method, with uneven shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from keepsight.recipes.config import METHODS
from launching import launch

SCRIPT = """
import sys, warnings
import numpy as np
import keepsight
from keepsight.data.load import load_dataset
from keepsight.data.subset import subset
from keepsight.recipes import fit_content_style
from keepsight.recipes.config import METHODS
short = {"epochs": 2, "batch_size": 8, "training": {"validate_every": 2, "checkpoint_steps": 3}}
upper = {**short, "views": 2, "objective": {"first_block": 3}}
sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.0}
semi = {
    "token": {"views": 1, "reduced": 16}, "batch_size": 8, "unlabelled_batch_size": 16, "epochs": 1, "least_steps": 4,
    "training": {"validate_every": 2, "ema": 0.9},
}
for settings in (short, upper, semi):
    settings["training"]["optim"] = sgd
tuned = {**semi, "frozen_training": semi["training"]}
views = {"views": 1, "reduced": 16}
# Four steps may well end in few classes; what counts here is that two processes end in the same.
fit_content_style.check_collapse = lambda *arguments: None
keepsight.tune(
    subset(load_dataset("digits"), np.arange(300)), out=sys.argv[1], methods=list(METHODS), seeds=1, selection_folds=2,
    readout="5:mean", forgetting={"measure": False},
    backbone={"name": "test_vit3", "weights": "random", "size": 32},
    split={"labels": 41, "test": 101, "validation": 0.27},
    view_probe=views, view_propagation=views, self_training=views, gaussian_mixture=views, fixmatch=semi, fixmatch_lora=semi,
    content_style=semi, content_only=semi, content_style_paper=semi, content_style_lora=tuned, content_style_full=tuned,
    auto={"candidates": ["knn", "view-propagation"], "folds": 2, "least_labels": 2}, cnn={**short, "steps": 6},
    finetune_adaptformer=upper, finetune_vpt=upper, finetune_dora=upper, finetune_oft=short, finetune_osf=short,
    finetune_bitfit=short, finetune_lora=upper, finetune_full={**short, "objective": {"layer_decay": 0.7}},
)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    launch(SCRIPT, folder / "one", 1, str(folder / "one/run"), KEEPSIGHT_CACHE=str(folder / "one/cache"))
    launch(SCRIPT, folder / "two", 2, str(folder / "two/run"), KEEPSIGHT_CACHE=str(folder / "two/cache"))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_predicts_the_same(ended: Path, method: str) -> None:
    cells = sorted(path.parent.name for path in (ended / "one/run/cells" / method).glob("*/cell.json"))
    cells = [cell for cell in cells if "auto" not in cell]  # what `auto` has fitted for its choice stands beside them
    assert cells == ["fold-0", "fold-1", "seed-0"]
    for cell in cells:
        one, two = (np.load(ended / n / "run/cells" / method / cell / "probabilities.npy") for n in ("one", "two"))
        assert one.shape == two.shape
        np.testing.assert_allclose(two, one, atol=2e-4)
    one_model, two_model = (
        load_file(ended / n / "run/cells" / method / "seed-0/model/backbone.safetensors") for n in ("one", "two")
    )
    for key, expected in one_model.items():
        np.testing.assert_allclose(two_model[key], expected, atol=2e-5)


def test_records_are_the_same_and_features_were_shared_out(ended: Path) -> None:
    one, two = (
        [json.loads(line) for line in (ended / n / "run/results.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    )
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        for key in ("method", "metric", "split", "n", "labels", "selection"):
            assert a[key] == b[key]
        assert b["value"] == pytest.approx(a["value"], abs=2e-4)
    chunks = [sorted(p.stat().st_size for p in (ended / n / "cache/features").rglob("*.npy")) for n in ("one", "two")]
    assert len(chunks[1]) > 1
    assert "(300 images through the backbone)" in (ended / "two/run/log.txt").read_text()
