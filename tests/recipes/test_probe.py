"""Probes as a run, with a small probe of our own: pairs, records, the cached before half, kill and resume."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.backbones.load import BackboneConfig, load_backbone
from keepsight.core import Batch, Example, Findings, Fit, Probe, Readout, Schedule, Score, Trainable, UserError, View
from keepsight.core.files import is_sound
from keepsight.core.result import read_results
from keepsight.data.arrays import ArrayImages
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead
from keepsight.recipes import probe as recipe
from keepsight.recipes import probe_fit
from keepsight.recipes.origin import Origin, sketch, write_origin
from keepsight.recipes.probe import probe
from keepsight.recipes.probe_fit import TrainerFit
from keepsight.recipes.probe_make import make_probe
from keepsight.recipes.probe_models import resized
from keepsight.recipes.probe_open import open_both, open_model
from keepsight.recipes.probe_settings import LoadingConfig, ProbingConfig, probing_config
from keepsight.report.page import read_page
from keepsight.report.probe_page import probe_page

SCHEDULE = Schedule(steps=6, batch_size=8, lr=1e-2)
UNTOUCHED = BackboneConfig(name="test_vit", weights="random", size=32)


class Learner(Trainable):
    def __init__(self, x_NF: Tensor, labels_N: Tensor) -> None:
        super().__init__()
        self.x_NF, self.labels_N = x_NF, labels_N
        self.head = nn.Linear(x_NF.shape[1], 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.dies_at = -1

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        del phase
        if step == self.dies_at:
            raise KeyboardInterrupt
        rows = batch.inputs
        # Noise: what the generator gives must be restored by a resumed training.
        x = self.x_NF[rows] + 0.1 * torch.randn(len(rows), self.x_NF.shape[1])
        return {"loss": F.cross_entropy(self.head(x), self.labels_N[rows])}


class BrightOrDark(Probe):
    """Is the picture bright or dark?"""

    name = "ocr"
    size = 32
    calls: list[str]

    def __init__(self, calls: list[str], settings: str = "") -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(40) % 2
        pixels = rng.integers(0, 100, (40, 16, 16, 3)) + 120 * self.labels[:, None, None, None]
        self.images = ArrayImages(pixels.astype(np.uint8))
        self.calls, self.settings, self.dies = calls, settings, False

    def key(self) -> str:
        return hashlib.sha256(f"bright {self.settings}".encode()).hexdigest()

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        self.calls.append("shuffled" if shuffled else "measured")
        if self.dies and len(self.calls) == 2:
            raise KeyboardInterrupt
        x_NF = view.vectors(np.arange(40), Readout())
        learner = Learner(x_NF[:24], torch.from_numpy(self.labels[:24]))
        fit(learner, 24, SCHEDULE, 0, "bright or dark")
        with torch.no_grad():
            said = learner.head(x_NF[24:]).argmax(1).numpy()
        right = (said == self.labels[24:]).astype(float)
        examples = (Example(24, "<b>dark</b>", str(said[0]), bool(right[0])),)
        return Findings((Score("accuracy", "pictures", right[None], chance=0.5),), examples)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(recipe, "make_probe", lambda *_: BrightOrDark(found))
    return found


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A model whose backbone was moved a little, as a run of tune leaves it."""
    backbone = load_backbone(UNTOUCHED)
    before = backbone.weights_hash()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.network.blocks.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    path = tmp_path / "run" / "model"
    TunedModel("finetune-full", backbone, Readout.parse("last:cls"), LinearHead(64, 2), ("a", "b")).save(path, "0")
    write_origin(path, Origin(backbone=UNTOUCHED, weights=before, data="leaves", images=()))
    return path


def test_a_tuned_model_is_compared_with_what_it_came_from(tuned: Path, calls: list[str], tmp_path: Path) -> None:
    found = probe(ProbingConfig(model=str(tuned), probes=("ocr",)), tmp_path / "out", command="keepsight probe <x>")
    assert calls == ["measured"] * 2
    assert [(r.metric, r.backbone, r.against) for r in found.results] == [
        ("accuracy", "test_vit", None),
        ("accuracy", str(tuned), None),
        ("accuracy_change", str(tuned), "untouched"),
    ]
    before, after, change = found.results
    assert change.value == pytest.approx(after.value - before.value)
    assert (change.before, change.interval, change.method) == (before.value, "paired bootstrap", "ocr")
    assert (after.chance, after.better, after.n, after.seed, after.size) == (0.5, "higher", 16, 0, 32)
    assert read_results(tmp_path / "out" / "results.jsonl") == found.results
    page = (tmp_path / "out" / "report.html").read_text()
    assert read_page(tmp_path / "out" / "report.json") == probe_page(tmp_path / "out")
    assert "&lt;b&gt;dark&lt;/b&gt;" in page
    assert "<b>dark" not in page
    assert "keepsight probe &lt;x&gt;" in page
    assert "data:image/" in page
    assert "accuracy" in (tmp_path / "out" / "table.txt").read_text()
    assert is_sound(tmp_path / "out", recipe.SEAL)
    # A finished run is read, and the before half is measured for nobody again.
    assert probe(ProbingConfig(model=str(tuned), probes=("ocr",)), tmp_path / "out").results == found.results
    again = probe(ProbingConfig(model=str(tuned), probes=("ocr",), against="none"), tmp_path / "alone")
    assert calls == ["measured"] * 3
    assert again.results == [
        after.model_copy(update={"seconds": again.results[0].seconds, "peak_mib": again.results[0].peak_mib})
    ]
    probe(ProbingConfig(model=str(tuned), probes=("ocr",)), tmp_path / "third")
    assert calls == ["measured"] * 4  # of the tuned one alone: the untouched one is in the user's cache


def test_a_backbone_against_itself_differs_by_exactly_nothing(calls: list[str], tmp_path: Path) -> None:
    config = ProbingConfig(model="test_vit", against="random", loading=LoadingConfig(weights="random"), probes=("ocr",))
    change = probe(config, tmp_path / "out").results[-1]
    assert (change.metric, change.value, change.ci_low, change.ci_high) == ("accuracy_change", 0, 0, 0)
    assert change.against == "random"
    assert calls == ["measured"]


def test_a_killed_run_goes_on(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    made = BrightOrDark(calls)
    monkeypatch.setattr(recipe, "make_probe", lambda *_: made)
    config = ProbingConfig(model=str(tuned), probes=("ocr",))
    straight = probe(config, tmp_path / "straight")
    shutil.rmtree(tmp_path / "cache")
    calls.clear()
    made.dies = True
    with pytest.raises(KeyboardInterrupt):
        probe(config, tmp_path / "out")
    assert calls == ["measured"] * 2
    shutil.rmtree(tmp_path / "cache")  # what was finished lies in the run's own folder, too
    found = probe(config, tmp_path / "out")
    assert calls == ["measured"] * 3
    for one, other in zip(found.results, straight.results, strict=True):
        assert one.model_copy(update={"seconds": 0, "peak_mib": 0}) == other.model_copy(
            update={"seconds": 0, "peak_mib": 0}
        )
    assert not (tmp_path / "out" / "work").exists()


def test_a_damaged_part_is_measured_again(tuned: Path, calls: list[str], tmp_path: Path) -> None:
    config = ProbingConfig(model=str(tuned), probes=("ocr",), against="none")
    probe(config, tmp_path / "out")
    (part,) = (tmp_path / "out" / "parts").iterdir()
    (part / "findings.json").write_text("{}")
    (tmp_path / "out" / recipe.SEAL).unlink()
    probe(config, tmp_path / "out")
    assert calls == ["measured"] * 2


def test_another_config_or_other_weights_are_another_run(tuned: Path, calls: list[str], tmp_path: Path) -> None:
    config = ProbingConfig(model=str(tuned), probes=("ocr",), against="none")
    probe(config, tmp_path / "out")
    with pytest.raises(UserError, match="another configuration"):
        probe(config.model_copy(update={"seed": 1}), tmp_path / "out")
    model = TunedModel.load(tuned)
    with torch.no_grad():
        model.backbone.network.norm.weight.add_(1)
    model.save(tuned, "0")
    with pytest.raises(UserError, match="another configuration"):
        probe(config, tmp_path / "out")
    assert calls == ["measured"]


def test_shuffled_is_measured_apart(tuned: Path, calls: list[str], tmp_path: Path) -> None:
    config = ProbingConfig(model=str(tuned), probes=("ocr",), against="none")
    probe(config, tmp_path / "out")
    probe(config.model_copy(update={"shuffled": True}), tmp_path / "control")
    assert calls == ["measured", "shuffled"]
    assert "Control" in (tmp_path / "control" / "table.txt").read_text()


def test_what_cannot_be_asked_is_left_out_unless_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, *_: object) -> Probe:
        if name != "ocr":
            raise UserError(f"no data for {name}.")
        return BrightOrDark([])

    monkeypatch.setattr(recipe, "make_probe", make)
    loading = LoadingConfig(weights="random")
    found = probe(ProbingConfig(model="test_vit", loading=loading), tmp_path / "out")
    assert {r.method for r in found.results} == {"ocr"}
    assert "vqa is left out: no data for vqa." in found.notes
    assert "no data for vqa" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(UserError, match="no data for vqa"):
        probe(ProbingConfig(model="test_vit", loading=loading, probes=("vqa",)), tmp_path / "named")


def learner() -> Learner:
    torch.manual_seed(5)
    return Learner(torch.randn(30, 4), torch.arange(30) % 2)


def test_a_killed_fit_goes_on_and_a_finished_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = learner()
    state = torch.get_rng_state()
    TrainerFit(tmp_path / "a")(straight, 30, SCHEDULE, 3, "head, seed 3")
    assert torch.equal(torch.get_rng_state(), state)
    assert straight.head.weight.abs().sum() > 0
    monkeypatch.setattr(probe_fit, "CHECKPOINT_SECONDS", 0.0)
    killed = learner()
    killed.dies_at = 4
    with pytest.raises(KeyboardInterrupt):
        TrainerFit(tmp_path / "b")(killed, 30, SCHEDULE, 3, "head, seed 3")
    again = learner()
    again.dies_at = 0  # it starts at a checkpoint, so that the first step is not taken again
    TrainerFit(tmp_path / "b")(again, 30, SCHEDULE, 3, "head, seed 3")
    assert torch.equal(again.head.weight, straight.head.weight)
    read = learner()
    read.dies_at = 0
    fit = TrainerFit(tmp_path / "b")
    fit(read, 30, SCHEDULE, 3, "head, seed 3")
    assert torch.equal(read.head.weight, straight.head.weight)
    assert (fit.parameters, read.training) == (10, False)
    other = learner()
    TrainerFit(tmp_path / "b")(other, 30, SCHEDULE, 4, "head, seed 3")
    assert not torch.equal(other.head.weight, straight.head.weight)


def test_a_tuned_network_at_another_size(tuned: Path) -> None:
    model = open_model(str(tuned), LoadingConfig())
    larger = model.at(48, squash=True)
    assert (larger.preprocessing.size, larger.preprocessing.fit) == (48, "squash")
    assert model.at(40, squash=True).preprocessing.size == 48  # whole patches of 16 px
    untouched = load_backbone(UNTOUCHED.model_copy(update={"size": 48}))
    found, start, tuned_state = (b.network.state_dict() for b in (larger, untouched, model.own))
    # Positions are those of the untouched network at that size, bit for bit; all other weights are the tuned ones.
    assert torch.equal(found["pos_embed"], start["pos_embed"])
    assert torch.equal(found["blocks.0.attn.qkv.weight"], tuned_state["blocks.0.attn.qkv.weight"])
    assert model.at(None, squash=False) is model.own
    assert model.at(32, squash=False) is model.own


def test_positions_that_were_tuned_are_carried_to_another_size() -> None:
    first, wanted = (load_backbone(UNTOUCHED.model_copy(update={"size": size})) for size in (32, 48))
    moved = copy.deepcopy(first)
    with torch.no_grad():
        moved.network.pos_embed[:, 1:] += 0.5  # alike everywhere: so it must be on another grid
        moved.network.pos_embed[:, 0] -= 1
    found = resized(moved, first, wanted).network.pos_embed
    assert torch.allclose(found[:, 1:], wanted.network.pos_embed[:, 1:] + 0.5, atol=1e-5)
    assert torch.allclose(found[:, 0], wanted.network.pos_embed[:, 0] - 1, atol=1e-5)


def test_models_are_opened_or_refused_in_one_sentence(tuned: Path, tmp_path: Path) -> None:
    model, other, against = open_both(ProbingConfig(model=str(tuned.parent)))
    assert (model.tuned, other is not None and other.title, against) == (True, "test_vit", "untouched")
    same, again, _ = open_both(ProbingConfig(model=str(tuned), against=str(tuned)))
    assert again is not None
    assert again.title != same.title
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.yaml").write_text("data: x\n")
    for text, said in (
        (str(tmp_path / "started"), "has no model: finish it"),
        ("vit_s14_imgfocsu", "did you mean vit_s14_imgfocus"),
        (str(tmp_path / "nowhere"), "nowhere"),
    ):
        with pytest.raises(UserError, match=said):
            open_model(text, LoadingConfig())
    with pytest.raises(UserError, match="leave out its loading settings"):
        open_model(str(tuned), LoadingConfig(weights="random"))
    origin = Origin(backbone=UNTOUCHED, weights="0" * 64, data="leaves", images=())
    write_origin(tuned, origin)
    with pytest.raises(UserError, match="are not those that"):
        open_both(ProbingConfig(model=str(tuned)))
    assert open_both(ProbingConfig(model=str(tuned), against="none"))[1] is None


def test_probes_by_name_and_what_they_must_not_show(tmp_path: Path, tuned: Path) -> None:
    config = probing_config("test_vit", probes="knn", assignments=["suite=[digits]", "knn.neighbours=3", "seed=2"])
    made = make_probe("knn", config)
    assert made.name == "knn"
    assert (made.config.neighbours, made.config.sets.seed) == (3, 2)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"Of the probe knn: .*did you mean 'neighbours'"):
        make_probe("knn", probing_config("test_vit", assignments=["suite=[digits]", "knn.neighbour=3"]))
    model = open_model(str(tuned), LoadingConfig())
    model.trained_on = sketch([made.images.content_hash(0)])
    with pytest.raises(UserError, match="No data set of the suite is left"):
        make_probe("knn", config, [model])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"probes": "ocr,vqaa"}, "There is no probe 'vqaa': there are ocr, goi"),
        ({"probes": "ocr,ocr"}, "twice"),
        ({"assignments": ["sed=1"]}, "did you mean 'seed'"),
        ({"assignments": ["pool=x"]}, "pool='x' is wrong"),
    ],
)
def test_wrong_words_are_one_sentence(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        probing_config("test_vit", **given)  # type: ignore[arg-type]


def test_facts_say_what_the_folder_holds(calls: list[str], tmp_path: Path) -> None:
    del calls
    config = ProbingConfig(model="test_vit", loading=LoadingConfig(weights="random"), probes=("ocr",))
    probe(config, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (facts["model"], facts["other"], facts["against"]) == ("test_vit", None, None)
    assert ProbingConfig.model_validate(facts["config"]) == config
