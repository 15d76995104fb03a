"""Figures of a model on labelled images: against scikit-learn, classes by name, the run's own test part, paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

import keepsight
from keepsight.backbones.load import load_backbone
from keepsight.core import UNLABELLED, Dataset, ImageList, Readout, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.demo import read_embedded
from keepsight.evaluate.classification import METRICS
from keepsight.evaluate.intervals import interval, paired_difference
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead
from keepsight.recipes.evaluate import evaluate_model


def make_model(classes: tuple[str, ...], seed: int = 0, method: str = "probe") -> TunedModel:
    backbone = load_backbone("test_vit", weights="random", size=32, timm_args={"depth": 1})
    head = LinearHead(features=64, classes=len(classes))
    with torch.no_grad():
        head.weight_KF.copy_(torch.randn(head.weight_KF.shape, generator=torch.Generator().manual_seed(seed)))
    return TunedModel(method, backbone, Readout(), head, classes)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """200 real digits, 50 of them the test part, 10 unlabelled."""
    whole = read_embedded("digits")
    images = ArrayImages(np.stack([np.asarray(whole.images.load(i).convert("L")) for i in range(200)]))
    labels = whole.labels[:200].copy()
    labels[:10] = UNLABELLED
    parts = ("train",) * 120 + ("val",) * 30 + ("test",) * 50
    return Dataset("some digits", images, labels, whole.classes, parts)


def by_metric(found: Any) -> dict[str, float]:
    return {r.metric: r.value for r in found.records}


@pytest.mark.parametrize(
    ("split", "rows"), [("test", slice(150, 200)), ("val", slice(120, 150)), ("all", slice(10, 200))]
)
def test_figures_are_those_of_scikit_learn(split: Any, rows: slice, digits: Dataset) -> None:
    model = make_model(digits.classes)
    found = evaluate_model(model, digits, split=split)
    truth, indices = digits.labels[rows], np.arange(200)[rows]
    said = model.probabilities(digits.images, indices).argmax(axis=1)
    values = by_metric(found)
    assert values["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert values["error"] == pytest.approx(1 - accuracy_score(truth, said))
    assert values["balanced_accuracy"] == pytest.approx(
        np.mean([np.mean(said[truth == k] == k) for k in np.unique(truth)])
    )
    assert values["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    for k, figures in zip(np.unique(truth), found.classes, strict=True):
        assert figures.name == digits.classes[k]
        assert figures.images == (truth == k).sum()
        assert figures.recall == pytest.approx(recall_score(truth == k, said == k))
        assert figures.f1 == pytest.approx(f1_score(truth == k, said == k))
        if (said == k).any():
            assert figures.precision == pytest.approx(precision_score(truth == k, said == k))
        else:
            assert figures.precision is None
    assert {r.n for r in found.records} == {len(truth)}
    assert all(r.ci_low <= r.value <= r.ci_high for r in found.records if r.metric in ("error", "accuracy"))
    assert found.records[0].split == {"val": "validation"}.get(split, split)


def test_without_a_choice_the_test_part_is_measured(digits: Dataset) -> None:
    model = make_model(digits.classes)
    assert by_metric(evaluate_model(model, digits)) == by_metric(evaluate_model(model, digits, split="test"))
    assert {(r.n, r.split) for r in evaluate_model(model, digits).records} == {(50, "test")}
    whole = Dataset("d", digits.images, digits.labels, digits.classes, ("",) * 200)
    assert {(r.n, r.split) for r in evaluate_model(model, whole).records} == {(190, "all")}
    with pytest.raises(UserError, match="no labelled images in a val part: measure all with --split all"):
        evaluate_model(model, whole, split="val")


def test_classes_are_matched_by_name(digits: Dataset) -> None:
    model = make_model(digits.classes)
    expected = by_metric(evaluate_model(model, digits, split="all"))
    order = np.random.default_rng(0).permutation(10)
    shuffled = Dataset(
        "shuffled",
        digits.images,
        np.where(digits.labels < 0, -1, np.argsort(order)[digits.labels]),
        tuple(digits.classes[k] for k in order),
        digits.parts,
    )
    assert by_metric(evaluate_model(model, shuffled, split="all")) == pytest.approx(expected)
    # A class that is listed but has no image, and a model that knows more classes: no harm.
    more = Dataset("more", digits.images, digits.labels, (*digits.classes, "a letter"), digits.parts)
    assert by_metric(evaluate_model(model, more, split="all")) == pytest.approx(expected)
    one = np.where(digits.labels == 3, 3, UNLABELLED)
    some = Dataset("threes", digits.images, one, digits.classes, digits.parts)
    assert evaluate_model(model, some, split="all").records[0].n == (digits.labels == 3).sum()
    fewer = make_model(digits.classes[:8])
    with pytest.raises(
        UserError, match=r"has the class '8' \(\d+ images\) and 1 other classes, which the model does not"
    ):
        evaluate_model(fewer, digits, split="all")


def test_a_model_against_another_on_the_same_images(digits: Dataset, tmp_path: Path) -> None:
    one, two = make_model(digits.classes), make_model((*digits.classes[::-1], "x"), seed=1, method="knn")
    two.save(tmp_path / "two", "0")
    found = evaluate_model(one, digits, split="all", against=tmp_path / "two")
    values = {(r.method, r.metric): r.value for r in found.records}
    assert len(values) == 15
    for metric in METRICS:
        difference = values["probe", metric] - values["knn", metric]
        assert values["probe - knn", f"{metric}_difference"] == pytest.approx(difference)
    interval_of = next(r for r in found.records if r.metric == "error_difference")
    assert interval_of.interval == "paired bootstrap"
    assert interval_of.ci_low < interval_of.value < interval_of.ci_high


def test_paired_intervals_are_narrow_where_both_err_on_the_same_images() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    hard = rng.random(400) < 0.3
    one = np.eye(2)[np.where(hard, 1 - truth, truth)]
    better = np.eye(2)[np.where(hard & (np.arange(400) % 10 > 0), 1 - truth, truth)]
    error = METRICS["error"]
    paired = paired_difference(error, (one, truth), (better, truth))
    single = interval(error, [one], truth)
    # The exact standard error of a mean of paired differences in {0, 1}.
    p = paired.value
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.15)
    assert paired.high - paired.low < 0.5 * (single.high - single.low)
    assert paired.low > 0
    same = paired_difference(error, (one, truth), (one, truth))
    assert same.value == 0
    assert same.low < 0 < same.high
    with pytest.raises(ValueError, match="same images"):
        paired_difference(error, (one, truth), (one[:3], truth[:3]))


class OneBroken(ImageList):
    """Another list whose image 5 cannot be read."""

    def __init__(self, inner: ImageList) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, index: int) -> Any:
        if index == 5:
            raise UserError("The image 5 cannot be read.")
        return self.inner.load(index)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def content_hash(self, index: int) -> bytes:
        return self.inner.content_hash(index)


def test_bad_images_stop_it_or_are_counted(digits: Dataset) -> None:
    model = make_model(digits.classes)
    labels = digits.labels.copy()
    labels[5] = 3
    bad = Dataset("bad", OneBroken(digits.images), labels, digits.classes, digits.parts)
    with pytest.raises(UserError, match="image 5"):
        evaluate_model(model, bad, split="all")
    found = evaluate_model(model, bad, split="all", skip_bad=True)
    assert found.skipped == 1
    assert by_metric(found) == pytest.approx(by_metric(evaluate_model(model, digits, split="all")))


def test_a_run_on_its_own_data_gives_the_figures_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = keepsight.tune(
        "digits",
        out=tmp_path / "run",
        backbone={"name": "test_vit", "weights": "random", "size": 32, "timm_args": {"depth": 1}},
        readout="1:mean",
        methods=["probe"],
        seeds=1,
        split={"labels": 60, "test": 300},
    )
    assert keepsight.evaluate_model is evaluate_model
    found = keepsight.evaluate_model(tmp_path / "run", "digits")
    expected = {r.metric: (r.value, r.n, r.labels) for r in run.results if r.split == "test" and r.seed == 0}
    assert {r.metric: (r.value, r.n, r.labels) for r in found.records} == {
        k: (pytest.approx(v, abs=1e-5), n, labels) for k, (v, n, labels) in expected.items()
    }
    caplog.clear()
    keepsight.evaluate_model(tmp_path / "run" / "model", "digits", split="all")
    assert "60 of these 1797 images were used to fit the model" in caplog.text
