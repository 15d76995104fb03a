"""The whole run on images with several classes each: real digits in MedFM's format, and in memory."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

import keepsight
from keepsight.backbones.load import load_backbone
from keepsight.core import Readout, UserError
from keepsight.core.result import read_results
from keepsight.data.arrays import ArrayImages
from keepsight.data.load import load_dataset
from keepsight.data.multilabel import multilabel_dataset
from keepsight.data.splits import Splits
from keepsight.evaluate.multilabel import MAP
from keepsight.export.model import TunedModel
from keepsight.export.predictions import write_predictions
from keepsight.heads.linear import LinearHead
from keepsight.recipes.config import resolve
from keepsight.recipes.evaluate import evaluate_model
from keepsight.recipes.folder import run_folder
from keepsight.recipes.multilabel import suited
from keepsight.recipes.plan import plan
from keepsight.recipes.recommend import recommend_by_map
from keepsight.recipes.run import tune
from keepsight.report.page import read_page

SMALL: dict[str, Any] = {
    "backbone": {"name": "test_vit", "weights": "random", "size": 32},
    "readout": "2,3:mean",
    "seeds": 2,
    "split": {"labels": 60, "test": 100},
    "selection_folds": 2,
}
ENDO = ("ulcer", "erosion", "polyp", "tumor")


def endo_targets(y: np.ndarray) -> np.ndarray:
    """Even, prime, above four, and a one: an image of 9 has one of them, an image of 2 two."""
    return np.stack([y % 2 == 0, np.isin(y, (2, 3, 5, 7)), y > 4, y == 1], axis=1).astype(np.int8)


@pytest.fixture(scope="module")
def endo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """220 real digits as MedFM's endoscopy, 20 more in its validation part without labels."""
    root = tmp_path_factory.mktemp("data") / "MedFM"
    found = load_digits()
    rows = {"train": ["img_id,study_id,ulcer,erosion,polyp,tumor"], "val": ["img_id,study_id"]}
    for i, has in enumerate(endo_targets(found.target[:240])):
        part = "train" if i < 220 else "val"
        images = root / f"MedFMC_{part}" / "endo" / "images"
        images.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[i] * 15).astype(np.uint8)).save(images / f"{i}.png")
        rows[part].append(",".join([f"{i}.png", str(i % 9), *(map(str, has) if part == "train" else ())]))
    for part, lines in rows.items():
        (root / f"MedFMC_{part}" / "endo" / f"endo_{part}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def finished(endo: Path, tmp_path_factory: pytest.TempPathFactory) -> keepsight.Run:
    methods = ["knn", "probe", "finetune-lora"]
    short = {"finetune_lora": {"epochs": 4}}
    return tune(str(endo), out=tmp_path_factory.mktemp("runs") / "endo", methods=methods, **SMALL, **short)


def test_every_method_has_records_of_each_figure(finished: keepsight.Run) -> None:
    figures = {MAP, "macro_auroc", *(f"ap({name})" for name in ENDO)}
    records = read_results(finished.path / "results.jsonl")
    for method in ("knn", "probe", "finetune-lora"):
        test = [r for r in records if r.method == method and r.split == "test"]
        assert {r.metric for r in test} == figures
        assert {r.seed for r in test} == {0, 1, None}
        assert all(r.ci_low <= r.value <= r.ci_high and r.n == 100 for r in test)
        (cv,) = [r for r in records if r.method == method and r.split == "cross-validation"]
        assert (cv.metric, cv.n, cv.labels) == (MAP, 60, 60)


def test_the_figure_is_that_of_the_saved_probabilities(finished: keepsight.Run, endo: Path) -> None:
    data = load_dataset(endo)
    splits = Splits.read(finished.path / "splits.json", data)
    chance = np.load(finished.path / "cells" / "probe" / "seed-0" / "probabilities.npy", allow_pickle=False)
    (record,) = [r for r in finished.results if (r.method, r.metric, r.seed) == ("probe", MAP, 0) and r.split == "test"]
    assert record.value == pytest.approx(average_precision_score(data.truth[splits.test], chance))
    assert (np.abs(chance.sum(axis=1) - 1) > 0.01).any()  # a sigmoid each, no softmax


@pytest.mark.parametrize("method", ["probe", "finetune-lora"])
def test_a_trained_head_ranks_better_than_chance(finished: keepsight.Run, endo: Path, method: str) -> None:
    data = load_dataset(endo)
    test = Splits.read(finished.path / "splits.json", data).test
    (record,) = [
        r for r in finished.results if (r.method, r.metric, r.seed) == (method, MAP, None) and r.split == "test"
    ]
    assert record.value > data.truth[test].mean() + 0.1


def test_words_say_map_and_not_error(finished: keepsight.Run) -> None:
    assert "highest 2-fold cross-validated mean average precision (mAP) on the 60 labelled images" in finished.why
    page = (finished.path / "report.html").read_text()
    for text in (
        "test mAP % [95 % interval]",
        "cross-validated mAP %",
        "Higher is better",
        "several classes",
        "Average precision of each class",
    ):
        assert text in page
    answer = read_page(finished.path / "report.json").answer
    assert "mAP" in answer
    assert "error" not in answer
    card = (finished.path / "model" / "README.md").read_text()
    assert "It is multi-label" in card
    assert "Cross-validated mAP on 60 labelled images" in card
    assert "error" not in card
    assert "% mAP" in (finished.path / "log.txt").read_text()


def test_the_model_answers_with_a_sigmoid_a_class(finished: keepsight.Run, endo: Path, tmp_path: Path) -> None:
    assert json.loads((finished.path / "model" / "model.json").read_text())["multilabel"] is True
    model = TunedModel.load(finished.path)
    assert model.multilabel
    data = load_dataset(endo)
    chance = model.probabilities(data.images, np.arange(8))
    paths = [str(endo / data.images.name(i)) for i in range(8)]
    write_predictions(model, paths, tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert list(rows[0]) == ["path", "label", *(f"p({name})" for name in ENDO)]
    for row, p in zip(rows, chance, strict=True):
        assert [float(row[f"p({name})"]) for name in ENDO] == pytest.approx(p.tolist(), abs=1e-5)
        assert row["label"] == "|".join(name for name, value in zip(ENDO, p, strict=True) if value >= 0.5)
    predicted = model.predict(paths)
    assert list(predicted.labels) == [row["label"] for row in rows]


def test_default_methods_are_those_that_work_and_others_are_refused(endo: Path, tmp_path: Path) -> None:
    data = load_dataset(endo)
    assert suited(resolve("x"), data).methods == ("knn", "probe", "finetune-lora", "finetune-full")
    counts = plan(resolve(str(endo), settings=SMALL))
    assert counts.cells == dict.fromkeys(("knn", "probe", "finetune-lora", "finetune-full"), 4)
    assert run_folder(resolve(f"medfm-endo:{endo}"), None, overwrite=False) == Path("runs/medfm-endo")
    refusal = "multi-label data, which the method label-propagation cannot learn: use knn, probe or finetune-..."
    with pytest.raises(UserError, match=refusal):
        tune(str(endo), out=tmp_path / "run", methods=["probe", "label-propagation"], **SMALL)
    assert not (tmp_path / "run").exists()


def test_in_memory_with_the_readout_chosen_and_a_validation_part(tmp_path: Path) -> None:
    found = load_digits()
    images = ArrayImages((found.images[:150] * 15).astype(np.uint8))
    data = multilabel_dataset("digits", images, endo_targets(found.target[:150]), ENDO, ("",) * 150)
    settings = {**SMALL, "readout": "auto", "seeds": 1, "split": {"labels": 80, "test": 40, "validation": 0.25}}
    methods = ["knn", "finetune-lora"]
    run = tune(data, out=tmp_path / "run", methods=methods, **settings, finetune_lora={"epochs": 1, "batch_size": 20})
    choice = json.loads((tmp_path / "run" / "readout.json").read_text())
    assert choice["criterion"] == "probe's cross-validated log-loss"
    assert len(set(choice["scores"].values())) > 3
    assert {r.selection for r in run.results if r.method == "finetune-lora"} == {"validation"}
    with pytest.raises(UserError, match="and keepsight evaluate needs one class an image"):
        evaluate_model(run.path, data)


def test_one_image_of_each_class_is_recommended_by_rule(tmp_path: Path) -> None:
    found = load_digits()
    images = ArrayImages((found.images[:60] * 15).astype(np.uint8))
    data = multilabel_dataset(
        "digits", images, np.eye(10, dtype=np.int8)[found.target[:60]], tuple("0123456789"), ("",) * 60
    )
    settings = {**SMALL, "seeds": 1, "split": {"labels": 10, "test": 30}}
    run = tune(data, out=tmp_path / "run", methods=["knn", "probe"], **settings)
    assert run.recommended == "probe"
    assert "by rule and not by measurement" in run.why


def test_the_recommendation_is_the_higher_map_with_its_doubt() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((100, 3)) < 0.3).astype(np.int8)
    good, same, bad = (targets * weight + rng.random((100, 3)) for weight in (2.0, 2.0, 0.0))
    found = recommend_by_map(
        ["knn", "probe", "finetune-full"], {"knn": bad, "probe": good, "finetune-full": same}, targets, 5
    )
    assert found.method == "probe"  # the cheaper of equals
    assert "not distinguishable from finetune-full" in found.why
    clear = recommend_by_map(["knn", "probe"], {"knn": bad, "probe": good}, targets, 5)
    assert "leaves out 0" in clear.why


def test_onnx_gives_sigmoids(tmp_path: Path) -> None:
    session = pytest.importorskip("onnxruntime")
    from keepsight.export.onnx import export_onnx

    torch.manual_seed(0)
    head = LinearHead(features=64, classes=3)
    torch.nn.init.normal_(head.weight_KF)
    backbone = load_backbone("test_vit", weights="random", size=32)
    export_onnx(
        TunedModel("probe", backbone, Readout.parse("last:cls"), head, ("a", "b", "c"), multilabel=True),
        tmp_path / "model.onnx",
    )
    run = session.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    logits, chance = run.run(["logits", "probabilities"], {"images": np.zeros((1, 3, 32, 32), np.float32)})
    assert chance == pytest.approx(torch.sigmoid(torch.from_numpy(logits)).numpy(), abs=1e-5)
