"""Forgetting of whole models: what is measured, what is cached, what is refused, what the folder holds."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TinyBackbone
from keepsight.adapters.lora import LoraConfig, add_lora, merge_lora
from keepsight.backbones.load import BackboneConfig, load_backbone
from keepsight.core import Backbone, Dataset, Readout, UserError
from keepsight.core.result import read_results
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import load_batch
from keepsight.evaluate.forgetting import ProbeRule
from keepsight.export.adapter import fused_adapter
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead
from keepsight.recipes import suite as suite_module
from keepsight.recipes.forgetting import forgetting, forgetting_note, forgetting_of_run
from keepsight.recipes.forgetting_attention import _as_seen, attention_galleries
from keepsight.recipes.forgetting_findings import records_of_findings
from keepsight.recipes.forgetting_measure import Pair, Picture, measure, points_of
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.origin import Origin, read_origin, sketch, write_origin
from keepsight.report.forgetting_page import forgetting_page
from keepsight.report.forgetting_records import MEAN, SHOWN, read_points
from keepsight.report.galleries import read_galleries
from keepsight.report.page import Chart, read_page

FAST = ForgettingConfig(rule=ProbeRule(strengths=(1e-3,), folds=3))
VIT: dict[str, Any] = {"name": "test_vit", "weights": "random", "size": 32}
HOSTILE = '</text><script>alert("1")</script>&\x0b'


def stripes(
    name: str = "stripes", seed: int = 0, n: int = 60, classes: tuple[str, ...] = ("a", HOSTILE, "c")
) -> Dataset:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (n, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(n) % 3
    for i, k in enumerate(labels):
        pixels[i, 5 * k : 5 * k + 4] += 120
    return Dataset(name, ArrayImages(pixels), labels.astype(np.int64), classes, ("",) * n)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    """The names that a suite may hold, in place of real data."""
    known = {"one": stripes("one"), "two": stripes("two", seed=1)}

    def load(name: str, *_: object, **__: object) -> Dataset:
        if name not in known:
            raise UserError(f"There is no {name} here.")
        return known[name]

    monkeypatch.setattr(suite_module, "load_dataset", load)
    monkeypatch.setattr(suite_module, "BUNDLED_SETS", ("one", "two", "gone"))
    return known


def tuned(backbone: Backbone, width: int, method: str = "finetune-full", **more: Any) -> TunedModel:
    return TunedModel(method, backbone, Readout.parse("last:mean"), LinearHead(width, 3), ("x", "y", "z"), **more)


def moved(backbone: Backbone, by: float = 0.3) -> Backbone:
    """A copy whose weights have been moved."""
    other = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in other.network.parameters():
            p.add_(by * p.std().nan_to_num(0.1) * torch.randn(p.shape, generator=generator))
    return other


def saved_vit(folder: Path, method: str = "finetune-full", by: float = 0.3) -> tuple[Path, Origin]:
    before = load_backbone(BackboneConfig(**VIT))
    tuned(moved(before, by) if by else before, 64, method).save(folder / "model", "0")
    origin = Origin(backbone=BackboneConfig(**VIT), weights=before.weights_hash(), data="own", images=())
    write_origin(folder, origin)
    return folder / "model", origin


class Counting(TinyBackbone):
    """Counts the images that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, images_BCHW: torch.Tensor, blocks: tuple[int, ...]):
        self.images += len(images_BCHW)
        return super().forward(images_BCHW, blocks)


def test_a_backbone_against_itself_differs_by_exactly_nothing(tmp_path: Path) -> None:
    one, two = TinyBackbone(), TinyBackbone()
    pair = Pair(
        one, two, one.weights_hash(), two.weights_hash() + "-again"
    )  # another hash: nothing comes out of one cache
    found = measure(pair, [stripes(), stripes("b", 2)], Readout.parse("last:cls+mean"), FAST, tmp_path / "after")
    figures = [*found.mean.values(), *(f for s in found.sets for f in s.figures.values())]
    assert len(figures) == 9
    assert {(f.change, f.low, f.high, f.kind) for f in figures} == {(0.0, 0.0, 0.0, "identical")}
    for block in (b for s in found.sets for b in s.blocks):
        assert block.cka == pytest.approx(1, abs=1e-9)
        assert abs(block.shuffled) < 0.3
    for picture in found.pictures:
        np.testing.assert_allclose(picture.before_N2, picture.after_N2, atol=1e-6)


def test_what_was_destroyed_is_found(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    before, after = TinyBackbone(), TinyBackbone()
    with torch.no_grad():
        after.network["embed"].weight.zero_()  # blind
    config = FAST.model_copy(update={"readout": "last:grid2"})
    found = forgetting(tuned(after, 8), tmp_path / "out", against=before, config=config).findings
    assert found is not None
    mean = found.mean["probe_accuracy"]
    assert mean.before > 0.8
    assert mean.high < -0.3
    assert mean.after == pytest.approx(1 / 3, abs=0.1)
    assert found.weights is not None
    assert 0.3 < found.weights.total < 1
    assert found.sets[0].blocks[-1].cka == 0
    assert list(found.notes) == ["gone is left out: There is no gone here."]


def test_the_half_before_costs_nothing_twice(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    before = Counting()
    first = forgetting(tuned(moved(TinyBackbone(), 0.2), 8), tmp_path / "1", against=before, config=FAST).findings
    assert first is not None
    assert (before.images, first.extracted) == (120, 120)
    second = forgetting(tuned(moved(TinyBackbone(), 0.4), 8), tmp_path / "2", against=before, config=FAST).findings
    assert second is not None
    assert (before.images, second.extracted) == (120, 0)
    assert second.mean["probe_accuracy"].before == first.mean["probe_accuracy"].before
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2", "cache"}  # the features after are gone


def _points(cloud: Chart) -> list[int]:
    return [len(panel["data"]["values"]) for panel in cloud.spec["concat"]]


class Sources(HTMLParser):
    """Addresses in the elements of a page; what its scripts hold is no element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_folder_and_its_page(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    out = tmp_path / "out"
    found = forgetting(tuned(moved(TinyBackbone()), 8), out, against=TinyBackbone(), config=FAST)
    assert {p.name for p in out.iterdir()} == {
        "COMPLETE",
        "examples.json",
        "forgetting.json",
        "pca.json",
        "report.html",
        "report.json",
        "report.md",
        "results.jsonl",
    }
    assert found.findings is not None
    records = read_results(out / "results.jsonl")
    assert records == records_of_findings(found.findings)
    change = next(r for r in records if r.dataset == MEAN and r.metric == "probe_accuracy_change")
    assert (change.task, change.against, change.n) == ("forgetting", "untouched", 120)
    assert change.before is not None
    assert change.before + change.value == pytest.approx(found.findings.mean["probe_accuracy"].after)
    assert change.ci_low <= change.value <= change.ci_high
    page = (out / "report.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert all(source.startswith(("#", "data:")) for source in sources.found)
    assert "paired bootstrap" in page
    assert forgetting_page(out) == read_page(out / "report.json")
    points = read_points(out)
    assert [(each.name, each.classes, len(each.labels)) for each in points] == [
        (name, each.classes, 60) for name, each in sets.items()
    ]
    clouds = [
        b for s in read_page(out / "report.json").sections for b in s.blocks if "Principal" in getattr(b, "title", "")
    ]
    assert [_points(cloud) for cloud in clouds if isinstance(cloud, Chart)] == [[60, 60]] * 2


def test_points_of_a_large_set_are_a_part_of_them_and_rounded() -> None:
    rng = np.random.default_rng(0)
    p0_N2, p_N2 = rng.normal(size=(2, 1000, 2)) * 1e-3
    labels_N = np.arange(1000)
    picture = Picture("large", p0_N2, p_N2, labels_N, tuple(map(str, labels_N)))
    found = points_of(picture, 0)
    assert len(found.before) == len(found.after) == len(found.labels) == SHOWN
    assert len(set(found.labels)) == SHOWN
    np.testing.assert_allclose(found.before, p0_N2[list(found.labels)], atol=1e-6)
    np.testing.assert_allclose(found.after, p_N2[list(found.labels)], atol=1e-6)
    assert points_of(picture, 0) == found
    assert points_of(picture, 1).labels != found.labels
    zeros = points_of(Picture("zero", p0_N2[:2] * 0, p_N2[:2] * 0, labels_N[:2], ("\udcff", "b")), 0)
    assert zeros.before == ((0.0, 0.0), (0.0, 0.0))
    assert zeros.classes == ("?", "b")  # what no file can hold


def test_a_measurement_of_a_version_without_this_page_gets_one(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    out, model, before = tmp_path / "out", tuned(moved(TinyBackbone()), 8), TinyBackbone()
    forgetting(model, out, against=before, config=FAST)
    page = (out / "report.html").read_bytes()
    for name in ("report.html", "report.json", "report.md"):
        (out / name).unlink()  # the page is not sealed: it is made of what is
    stamp = (out / "forgetting.json").stat().st_mtime_ns
    forgetting(model, out, against=before, config=FAST)
    assert (out / "forgetting.json").stat().st_mtime_ns == stamp
    assert (out / "report.html").read_bytes() == page
    (out / "pca.json").write_text("")
    with pytest.raises(UserError, match="--overwrite"):
        forgetting(model, out, against=before, config=FAST)


def test_where_both_networks_look_is_on_the_page(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    path, origin = saved_vit(tmp_path)
    out = tmp_path / "out"
    forgetting(path, out, config=FAST.model_copy(update={"attention": 3}))
    (gallery,) = read_galleries(out) or ()
    # Of the suite's first set: the run has no data of its own.
    assert (gallery.of, gallery.kind, len(gallery.pictures.pictures)) == ("one", "attention", 3)
    (section,) = (s for s in forgetting_page(out).sections if s.title == "Where the networks look")
    assert section.blocks == (gallery.pictures,)

    before, after = load_backbone(origin.backbone), TunedModel.load(path).backbone
    dataset = sets["two"]
    rows = [7, 3, 50]
    (own,) = attention_galleries(before, after, dataset, rows, 2, 0)
    assert (own.of, len(own.pictures.pictures)) == ("two", 2)
    (same,) = attention_galleries(before, before, dataset, rows, 2, 0)
    assert same != own
    whole = before.preprocessing.model_copy(update={"fit": "squash"})
    seen = np.asarray(_as_seen(load_batch(dataset.images, [3], whole)[0], whole), dtype=int)
    shown = np.asarray(dataset.images.load(3).resize((32, 32), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(seen - shown).mean() < 2
    assert attention_galleries(before, after, dataset, rows, 0, 0) == []
    assert attention_galleries(TinyBackbone(), TinyBackbone(), dataset, rows, 2, 0) == []  # it has no attention


def test_measured_already_is_said_and_other_settings_are_refused(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    out, after, before = tmp_path / "out", moved(TinyBackbone()), Counting()
    first = forgetting(tuned(after, 8), out, against=before, config=FAST)
    stamp = (out / "forgetting.json").stat().st_mtime_ns
    assert forgetting(tuned(after, 8), out, against=before, config=FAST).findings == first.findings
    assert (out / "forgetting.json").stat().st_mtime_ns == stamp
    other = FAST.model_copy(update={"per_set": 30})
    with pytest.raises(UserError, match="--overwrite"):
        forgetting(tuned(after, 8), out, against=before, config=other)
    again = forgetting(tuned(after, 8), out, against=before, config=other, overwrite=True).findings
    assert again is not None
    assert [s.images for s in again.sets] == [30, 30]


def test_a_frozen_method_is_one_sentence(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    path, origin = saved_vit(tmp_path / "run", "probe", by=0)
    found = forgetting(path)
    assert found.findings is None
    assert found.sentence.startswith("probe changed no weight of the backbone")
    assert not (path / "forgetting").exists()
    own = stripes(), [0, 1]
    of_run = forgetting_of_run(
        tmp_path / "run", load_backbone(BackboneConfig(**VIT)), origin, [("probe", path)], ForgettingConfig(), own
    )
    assert of_run == {"probe": found.sentence}


def test_the_untouched_weights_must_be_those_that_were_recorded(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    path, origin = saved_vit(tmp_path / "run")
    assert read_origin(path) == origin
    assert forgetting(path, tmp_path / "out", config=FAST).findings is not None
    write_origin(tmp_path / "run", origin.model_copy(update={"weights": "0" * 64}))
    with pytest.raises(UserError, match=r"weights that test_vit gives now .* are not those"):
        forgetting(path, tmp_path / "other")
    write_origin(tmp_path / "run", origin.model_copy(update={"backbone": BackboneConfig(**{**VIT, "size": 48})}))
    with pytest.raises(UserError, match="tuned from another network"):
        forgetting(path, tmp_path / "other")
    (tmp_path / "run" / "origin.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        forgetting(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_was_trained_on_is_left_out(
    tmp_path: Path, sets: dict[str, Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    path, origin = saved_vit(tmp_path / "run")
    # One image alone of set two, and it would not even have been drawn.
    seen = sketch([sets["two"].images.content_hash(59)])
    write_origin(tmp_path / "run", origin.model_copy(update={"images": seen}))
    found = forgetting(path, tmp_path / "out", config=FAST.model_copy(update={"per_set": 20})).findings
    assert found is not None
    assert [s.name for s in found.sets] == ["one"]
    assert "two is left out: at least 1 of its 60 images are in the data of the training." in found.notes
    with pytest.raises(UserError, match="No data set of the suite is left"):
        forgetting(path, tmp_path / "other", config=ForgettingConfig(suite=("two",)))
    with pytest.raises(UserError, match="There is no gone here"):  # a set that the user names must be there
        forgetting(path, tmp_path / "other", config=ForgettingConfig(suite=("gone",)))


def test_two_models_can_be_compared(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    one, two = tuned(moved(TinyBackbone()), 8), tuned(moved(TinyBackbone(), 0.1), 8, "finetune-lora")
    found = forgetting(one, tmp_path / "out", against=two, config=FAST).findings
    assert found is not None
    assert (found.method, found.against) == ("finetune-full", "finetune-lora")
    narrow = forgetting(
        one, tmp_path / "narrow", against=tuned(TinyBackbone(width=6), 6, "other"), config=FAST
    ).findings
    assert narrow is not None
    assert narrow.weights is None  # of another architecture


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_with_the_adapter_off_the_features_are_bitwise_the_untouched_ones(
    tmp_path: Path, sets: dict[str, Dataset]
) -> None:
    before = load_backbone(BackboneConfig(**VIT))
    after = copy.deepcopy(before)
    peft_model = add_lora(after, Readout.parse("last:mean").resolved(3), LoraConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    adapter = fused_adapter(peft_model)
    merge_lora(after, peft_model)
    model = tuned(after, 64, "finetune-lora", adapter=adapter)
    found = forgetting(model, tmp_path / "out", against=before, config=FAST).findings
    assert found is not None
    assert found.adapter is not None
    assert found.adapter.off_identical
    assert found.adapter.off_deviation == 0
    assert found.adapter.on_deviation < 1e-4
    assert "switched off, the model has forgotten nothing, exactly" in (tmp_path / "out" / "report.html").read_text()
    # The check can fail: against other weights it does.
    other = forgetting(model, tmp_path / "other", against=moved(before, 0.01), config=FAST).findings
    assert other is not None
    assert other.adapter is not None
    assert other.adapter.on_deviation > 1e-4


def test_a_run_measures_its_tuned_methods_and_resumes(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    path, origin = saved_vit(tmp_path / "run")
    before, own = load_backbone(BackboneConfig(**VIT)), (sets["one"], list(range(9)))
    run, config = tmp_path / "run", FAST.model_copy(update={"suite": ("two",), "sharpness": True, "pairs": 2})
    methods = [("finetune-full", path), ("lost", tmp_path / "nowhere")]
    model = TunedModel.load(path)
    assert tuple(model.classes) == ("x", "y", "z")
    own = (Dataset("own", own[0].images, own[0].labels, ("x", "y", "z"), own[0].parts), own[1])
    found = forgetting_of_run(run, before, origin, methods, config, own)
    assert found["finetune-full"].startswith("On one data set that was not trained on: linear probe")
    assert found["lost"].startswith("Not measured: There is no tuned model")
    folder = run / "forgetting" / "finetune-full"
    stamp = (folder / "forgetting.json").stat().st_mtime_ns
    assert forgetting_of_run(run, before, origin, methods[:1], config, own)["finetune-full"] == found["finetune-full"]
    assert (folder / "forgetting.json").stat().st_mtime_ns == stamp
    sharp = json.loads((folder / "forgetting.json").read_text())["sharpness"]
    assert (sharp["images"], sharp["pairs"]) == (9, 2)
    assert sharp["loss"] == pytest.approx(np.log(3))  # a head of zeros
    assert forgetting_of_run(run, before, origin, methods, ForgettingConfig(measure=False), own) == {}
    assert forgetting_note(found, ["knn", "probe"]).splitlines()[-1].startswith("knn, probe: the backbone is frozen")


def test_sharpness_needs_a_run(tmp_path: Path, sets: dict[str, Dataset]) -> None:
    path, _ = saved_vit(tmp_path / "alone")
    with pytest.raises(UserError, match="leave --sharpness out"):
        forgetting(path, tmp_path / "out", config=FAST.model_copy(update={"sharpness": True}))
