"""Content-style through `tune`: in the table, saved and loaded, collapses reported, supervised case said, auto chosen."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keepsight.core import CollapsedError, Dataset, UserError
from keepsight.data.load import load_dataset
from keepsight.data.subset import subset
from keepsight.export.model import TunedModel
from keepsight.heads.content_style import ContentStyleHead
from keepsight.recipes import cells
from keepsight.recipes.choose import choose_by_agreement, choose_by_folds
from keepsight.recipes.context import Cell
from keepsight.recipes.fit_content_style import check_collapse, effective_classes
from keepsight.recipes.run import tune

SHORT = {"token": {"views": 1, "reduced": 16}, "least_steps": 30, "epochs": 1}
SETTINGS: dict[str, Any] = {
    "seeds": 1,
    "selection_folds": 0,
    "readout": "5:mean",
    "backbone": {"name": "test_vit3", "weights": "random", "size": 32},
    "split": {"labels": 30, "test": 60},
    "content_style": SHORT,
    "content_only": SHORT,
    "content_style_paper": {**SHORT, "token": {"views": 0, "reduced": 16}},
    "view_propagation": {"views": 1, "reduced": 16},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "content-style-cache"))


@pytest.fixture(scope="module")
def few() -> Dataset:
    return subset(load_dataset("digits"), np.arange(300))


def test_the_variants_are_in_the_table_and_the_model_keeps_its_style(few: Dataset, tmp_path: Path) -> None:
    run = tune(few, out=tmp_path / "run", methods=["content-style", "content-only", "content-style-paper"], **SETTINGS)
    errors = {r.method: r.value for r in run.results if r.metric == "error" and r.seed is None}
    assert set(errors) == {"content-style", "content-only", "content-style-paper"}
    assert errors["content-style"] < 0.8  # chance is 0.9
    model = TunedModel.load(tmp_path / "run/cells/content-style/seed-0/model")
    assert isinstance(model.head, ContentStyleHead)
    x = torch.randn(2, model.head.shape()["features"])
    assert model.head.style(model.head.token(x)).shape == (2, 16)
    saved = np.load(tmp_path / "run/cells/content-style/seed-0/probabilities.npy")
    test = json.loads((tmp_path / "run/splits.json").read_text())["test"]
    np.testing.assert_allclose(model.probabilities(few.images, np.array(test)), saved, atol=1e-4)
    only = TunedModel.load(tmp_path / "run/cells/content-only/seed-0/model").head.shape()
    assert only["style"] == 0


def test_with_the_backbone_trained(few: Dataset, tmp_path: Path) -> None:
    short = {**SHORT, "batch_size": 4, "unlabelled_batch_size": 16, "least_steps": 40, "epochs": 1}
    settings = {**SETTINGS, "split": {"labels": 20, "test": 250}}
    run = tune(
        few,
        out=tmp_path / "run",
        methods=["content-style-lora", "content-style-full"],
        **settings,
        content_style_lora=short,
        content_style_full=short,
    )
    assert {r.method for r in run.results} == {"content-style-lora", "content-style-full"}
    model = TunedModel.load(tmp_path / "run/cells/content-style-lora/seed-0/model")
    assert model.adapter is not None


def test_without_unlabelled_images_it_says_that_it_is_supervised(
    few: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="keepsight"):
        tune(
            few, out=tmp_path / "run", methods=["content-style"], **{**SETTINGS, "split": {"labels": None, "test": 60}}
        )
    assert any("no unlabelled images: it is the supervised case" in r.getMessage() for r in caplog.records)


def test_new_unlabelled_images_need_only_their_own_features(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    first = subset(few, np.arange(200))
    tune(first, out=tmp_path / "one", methods=["content-style"], **SETTINGS)
    tune(few, out=tmp_path / "two", methods=["content-style"], **SETTINGS)
    assert "(100 images through the backbone)" in (tmp_path / "two/log.txt").read_text()


def cell(method: Any = "content-style") -> Cell:
    none = np.empty(0, dtype=np.int64)
    return Cell(method, "seed-0", 0, none, none, none, none)


def test_a_collapse_is_an_error_that_says_what_happened() -> None:
    prior = torch.full((10,), 0.1)
    even = torch.eye(10).repeat(5, 1)
    check_collapse(cell(), even, prior)
    with pytest.raises(
        CollapsedError, match=r"content-style seed-0 collapsed: it predicts 1\.0 classes .* about 10\.0"
    ):
        check_collapse(cell(), torch.eye(10)[:1].repeat(50, 1), prior)
    with pytest.raises(CollapsedError, match=r"predicts 3\.0 classes"):
        check_collapse(cell(), torch.eye(10)[:3].repeat(5, 1), prior)
    # The same three classes are what a very uneven prior expects, and two of two are no collapse.
    check_collapse(cell(), torch.eye(10)[:3].repeat(5, 1), torch.tensor([0.4, 0.3, 0.2] + [0.1 / 7] * 7))
    check_collapse(cell(), torch.eye(2).repeat(5, 1), torch.full((2,), 0.5))
    with pytest.raises(CollapsedError):
        check_collapse(cell(), torch.full((4, 10), float("nan")), prior)
    # Unsure of everything is a collapse to one answer, though the mean prediction is even.
    with pytest.raises(CollapsedError):
        check_collapse(cell(), torch.full((50, 10), 0.1) + 1e-3 * torch.eye(10)[0], prior)
    assert effective_classes(prior) == pytest.approx(10.0, rel=1e-4)


def test_a_collapsed_method_is_left_out_and_named(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cells._compute

    def collapse(context: Any, one: Cell, folder: Path) -> None:
        if one.method == "content-style":
            raise CollapsedError("content-style seed-0 collapsed: it predicts 1.0 classes.")
        real(context, one, folder)

    monkeypatch.setattr(cells, "_compute", collapse)
    run = tune(few, out=tmp_path / "run", methods=["probe", "content-style"], **SETTINGS)
    assert run.recommended == "probe"
    assert {r.method for r in run.results} == {"probe"}
    page = (tmp_path / "run/report.html").read_text()
    assert "Methods without a result" in page
    assert "it predicts 1.0 classes" in page
    with pytest.raises(UserError, match="collapsed"):
        tune(few, out=tmp_path / "alone", methods=["content-style"], **SETTINGS)


def test_auto_takes_the_better_candidate_and_says_why(few: Dataset, tmp_path: Path) -> None:
    auto = {"candidates": ["knn", "label-propagation"], "default": "knn", "folds": 3}
    methods = ["knn", "label-propagation", "auto"]
    run = tune(
        few, out=tmp_path / "run", methods=methods, **{**SETTINGS, "auto": auto, "split": {"labels": 60, "test": 60}}
    )
    choice = json.loads((tmp_path / "run/auto/seed-0.json").read_text())
    assert choice["criterion"] == "cross-validation"
    assert choice["labels"] == 60
    values = {r.method: r.value for r in run.results if r.metric == "error" and r.seed is None}
    assert values["auto"] == values[choice["method"]]
    # Recomputed: the errors on the hidden labels are those of the fold cells.
    found = {}
    for method in ("knn", "label-propagation"):
        parts = sorted((tmp_path / "run/cells" / method).glob("seed-0-auto-*"))
        assert len(parts) == 3
        found[method] = sum(len(np.load(part / "probabilities.npy")) for part in parts)
    assert found == {"knn": 60, "label-propagation": 60}
    sparing = {**auto, "enough": 15}  # one fold hides 20 labels, and that is enough
    tune(
        few, out=tmp_path / "one", methods=methods, **{**SETTINGS, "auto": sparing, "split": {"labels": 60, "test": 60}}
    )
    assert len(list((tmp_path / "one/cells/knn").glob("seed-0-auto-*"))) == 1
    one_each = {**SETTINGS, "auto": auto, "split": {"labels": 10, "test": 60}}
    tune(few, out=tmp_path / "few", methods=methods, **one_each)
    assert json.loads((tmp_path / "few/auto/seed-0.json").read_text())["criterion"] == "agreement and margin"


def test_the_choice_needs_evidence_to_leave_the_default() -> None:
    wrong = {
        "probe": np.arange(40) < 5,
        "content-style": np.isin(np.arange(40), [1, 2, 3, 10]),
        "knn": np.arange(40) < 30,
    }
    assert choose_by_folds(wrong, "probe")[0] == "probe"
    assert choose_by_folds(wrong, "knn") == ("content-style", {"probe": 0.125, "content-style": 0.1, "knn": 0.75})
    agreed = np.eye(4)[np.arange(40) % 4]
    alone = np.roll(agreed, 1, axis=1)
    chances = {"probe": agreed, "knn": 0.9 * agreed + 0.025, "content-style": alone}
    assert choose_by_agreement(chances, "content-style")[0] == "probe"
    assert choose_by_agreement({"probe": agreed, "knn": agreed}, "knn")[0] == "knn"


def test_auto_among_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other methods than auto"):
        tune("digits", out=tmp_path / "run", auto={"candidates": ["auto", "probe"]})
