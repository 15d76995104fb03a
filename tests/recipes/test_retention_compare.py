"""A whole small comparison of retention: what is measured, resumed, refused and written."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keepsight.core import Dataset, UserError
from keepsight.core.result import read_results
from keepsight.data.arrays import ArrayImages
from keepsight.evaluate.forgetting import ProbeRule
from keepsight.methods.penalties import NAMES, parse_penalty
from keepsight.recipes import retention_cells, retention_compare, retention_fits
from keepsight.recipes import suite as suite_module
from keepsight.recipes.retention_cells import read_cell
from keepsight.recipes.retention_compare import Comparison, compare_retention, keys_of
from keepsight.recipes.retention_config import CONTROL, CompareConfig, alpha_of, retention_config
from keepsight.recipes.retention_fits import UNTOUCHED, Key, end_of, mixed
from keepsight.report.page import read_page
from keepsight.report.retention import print_retention, retention_markdown
from keepsight.report.retention_page import retention_page
from keepsight.report.retention_records import (
    MEAN,
    CellFailure,
    CompareFacts,
    read_compare_facts,
)
from keepsight.report.retention_table import sentences

HOSTILE = '</td><script>alert("1")</script>|&`x`'
SMALL = [
    "backbone.weights=random",
    'backbone.timm_args={"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}',
    "finetune_full.epochs=2",
    "finetune_full.batch_size=6",
    "finetune_full.training.optim.lr=0.01",
    "finetune_lora.epochs=2",
    "finetune_lora.batch_size=6",
    "probe.folds=2",
]


def blobs(name: str, seed: int, n: int = 60) -> Dataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pixels = rng.integers(0, 90, (n, 28, 28))
    pixels[labels == 0, :14] += 120
    pixels[labels == 1, 14:] += 120
    return Dataset(name, ArrayImages(pixels.astype(np.uint8)), labels.astype(np.int64), ("up", HOSTILE), ("",) * n)


@pytest.fixture(autouse=True)
def _own_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets by name; the cache is shared by the tests of this file, since nothing in it depends on them."""
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "retention-cache"))
    known = {"task": blobs("task", 0), "one": blobs("one", 1), HOSTILE: blobs(HOSTILE, 2)}

    def load(name: str, *_: object, **__: object) -> Dataset:
        if name not in known:
            raise UserError(f"There is no {name} here.")
        return known[name]

    for module in (suite_module, retention_compare):
        monkeypatch.setattr(module, "load_dataset", load)


def config(retain: str, **more: Any) -> CompareConfig:
    given: dict[str, Any] = {"methods": "finetune-full", "suite": ("one", HOSTILE), **more}
    found = retention_config(
        "task",
        retain=retain,
        labels=12,
        test=20,
        backbone="vit_small_patch14_dinov2",
        size=28,
        readout="2:mean",
        per_set=30,
        assignments=SMALL,
        **given,
    )
    rule = ProbeRule(strengths=(1e-3,), folds=3)
    return found.model_copy(update={"forgetting": found.forgetting.model_copy(update={"rule": rule})})


@pytest.fixture
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these trainings."""
    monkeypatch.setattr(retention_compare, "write_retention_reports", lambda path: [])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"out": tmp_path_factory.mktemp("compare") / "out"}


WANTED = "procrustes:50,soup:2,wise-ft:0,wise-ft:0.5,wise-ft:1,unlabelled-control"


@pytest.fixture
def comparison(made: dict[str, Any]) -> Comparison:
    """Made by the first test that asks."""
    if "found" not in made:
        made["found"] = compare_retention(config(WANTED), made["out"], command=f"keepsight {HOSTILE}")
    return made["found"]


def value(found: Comparison, retain: str, metric: str, dataset: str = MEAN, against: str | None = UNTOUCHED) -> float:
    (record,) = (
        r
        for r in found.results
        if (r.retain, r.metric, r.dataset, r.against) == (retain, metric, dataset, against) and r.method != UNTOUCHED
    )
    assert record.ci_low <= record.value <= record.ci_high
    return record.value


def test_what_is_measured_of_every_variant(comparison: Comparison) -> None:
    assert comparison.failures == []
    variants = ["none", *WANTED.split(",")]
    assert list(dict.fromkeys(r.retain for r in comparison.results if r.method != UNTOUCHED)) == variants
    sets = ["one", HOSTILE]
    for variant in variants:
        changes = [value(comparison, variant, "probe_accuracy_change", name) for name in sets]
        assert value(comparison, variant, "probe_accuracy_change") == pytest.approx(np.mean(changes))
        for metric in ("knn_accuracy_change", "probe_ece_change", "cka", "cka_shuffled"):
            value(comparison, variant, metric)
        for metric in ("accuracy", "refitted_accuracy", "ece"):
            value(comparison, variant, metric, "task", None)
    plain = value(comparison, "none", "weight_distance", "task", None)
    assert 0 < value(comparison, "procrustes:50", "weight_distance", "task", None) != plain
    assert value(comparison, "wise-ft:0.5", "weight_distance", "task", None) == pytest.approx(plain / 2, rel=1e-3)
    assert value(comparison, CONTROL, "weight_distance", "task", None) > 0
    trained = [r for r in comparison.results if r.metric == "step_seconds"]
    assert {r.retain for r in trained} == {"none", "procrustes:50", "soup:2", CONTROL}
    assert all(r.value > 0 and r.seconds > 0 and r.peak_mib > 0 for r in trained)


def test_the_two_ends_of_wise_ft_are_the_backbone_and_the_plain_training(comparison: Comparison, made: Any) -> None:
    for variant, against, same in (
        ("wise-ft:0", UNTOUCHED, True),
        ("wise-ft:1", "none", True),
        ("wise-ft:0.5", "none", False),
    ):
        for metric, dataset in (("probe_accuracy_change", MEAN), ("accuracy_change", "task")):
            records = [
                r
                for r in comparison.results
                if (r.retain, r.metric, r.dataset, r.against) == (variant, metric, dataset, against)
            ]
            assert [r.interval == "identical" and r.value == 0 for r in records] == [same]
    assert value(comparison, "wise-ft:0", "weight_distance", "task", None) == 0


@pytest.mark.usefixtures("_without_pages")
@pytest.mark.parametrize("method", ["finetune-full", "finetune-lora"])
def test_mixed_weights_are_exactly_the_ends(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def note(task: Any, key: Key) -> str | None:
        seen["task"] = task
        retention_cells.run_retention_cell(task, key)
        return None

    monkeypatch.setattr(retention_compare, "_sentence", note)
    compare_retention(config("none", methods=method, suite=("one",)), tmp_path / "out")
    task, key = seen["task"], Key(method, "wise-ft", 0)
    plain = retention_fits.TunedModel.load(Key(method, "none", 0).folder(tmp_path / "out") / "model")
    for alpha, backbone in ((0.0, task.context.backbone), (1.0, plain.backbone)):
        found = mixed(task, key, alpha)
        end = end_of(replace(key, variant=f"wise-ft:{alpha:g}"))
        assert end is not None
        copied, computed = read_cell(task, end), retention_cells._look(task, key, found)[1]
        for name, array in (("head", copied.head_NK), ("refitted", copied.refitted_NK), ("probe_0", copied.probe[0])):
            np.testing.assert_array_equal(computed[name], array)
        there, wanted = found.backbone.network.state_dict(), backbone.network.state_dict()
        assert there.keys() == wanted.keys()
        assert all(torch.equal(there[name], wanted[name]) for name in wanted)
    assert all(torch.equal(p, q) for p, q in zip(found.head.parameters(), plain.head.parameters(), strict=True))


def test_the_share_kept_is_of_what_the_plain_training_lost(comparison: Comparison) -> None:
    lost = [r for r in comparison.results if (r.retain, r.metric, r.dataset) == ("none", "probe_accuracy_change", MEAN)]
    shares = [r for r in comparison.results if r.metric == "share_kept"]
    assert bool(shares) == (lost[0].ci_high < 0)
    kept = value(comparison, "procrustes:50", "probe_accuracy_change", MEAN, "none")
    change = value(comparison, "procrustes:50", "probe_accuracy_change")
    assert kept == pytest.approx(change - lost[0].value)


class Sources(HTMLParser):
    """Addresses in the elements of a page; what its scripts hold is no element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_folder_and_its_pages(comparison: Comparison, made: Any) -> None:
    out: Path = made["out"]
    assert read_results(out / "results.jsonl") == comparison.results
    for name in (
        "table.txt",
        "table.md",
        "report.html",
        "report.json",
        "report.md",
        "pareto.png",
        "pareto.svg",
        "compare.json",
        "environment.json",
    ):
        assert (out / name).stat().st_size > 0
    page, text, table = ((out / n).read_text() for n in ("report.html", "table.txt", "table.md"))
    assert 'alert("1")</script>' not in page
    assert "alert(&quot;1&quot;)" in page
    sources = Sources()
    sources.feed(page)
    assert all(source.startswith(("#", "data:")) for source in sources.found)
    assert retention_page(out) == read_page(out / "report.json")
    for heading in (
        "trained head %",
        "refitted probe %",
        "kept, points",
        "share kept %",
        "CKA (control)",
        "ECE %",
        "ms a step",
        "peak MiB",
    ):
        assert heading in page
        assert heading in text
        assert heading in table
    assert "<script" not in table
    assert "procrustes:50" in text
    assert not list(out.glob(".features-*"))
    assert not (out / "checkpoints").exists() or not any((out / "checkpoints").rglob("*.safetensors"))


def test_a_finished_comparison_is_not_made_again_and_a_damaged_cell_is(
    comparison: Comparison, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Key] = []
    real = retention_compare.run_retention_cell

    def note(task: Any, key: Key) -> None:
        computed.append(key)
        real(task, key)

    monkeypatch.setattr(retention_compare, "run_retention_cell", note)
    out: Path = made["out"]
    assert compare_retention(config(WANTED), out).results == comparison.results
    assert computed == []
    (out / ".complete").unlink()
    key = Key("finetune-full", "wise-ft:0.5", 0)
    (key.folder(out) / "predictions.npz").write_bytes(b"half")
    again = compare_retention(config(WANTED), out)
    assert computed == [key]
    assert again.results == comparison.results
    with pytest.raises(UserError, match="another configuration"):
        compare_retention(config("procrustes:50"), out)


@pytest.mark.usefixtures("_without_pages")
def test_a_cell_that_fails_is_listed_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = retention_fits.fit_finetune

    def fit(context: Any, *rest: Any) -> Any:
        if not context.config.retain:
            raise UserError("The training collapsed.")
        return real(context, *rest)

    monkeypatch.setattr(retention_fits, "fit_finetune", fit)
    wanted = config("procrustes,wise-ft:0.5", suite=("one",))
    found = compare_retention(wanted, tmp_path / "out")
    assert (found.failures[0].retain, found.failures[0].sentence) == ("none", "The training collapsed.")
    assert "made of the plain training" in found.failures[1].sentence
    assert {r.retain for r in found.results if r.method != UNTOUCHED} == {"procrustes"}
    said = sentences(read_compare_facts(found.path), found.results)
    assert said[0] == "finetune-full without retention has no result: nothing can be compared with it."


@pytest.mark.usefixtures("_without_pages")
def test_several_seeds_are_one_figure(tmp_path: Path) -> None:
    found = compare_retention(config("wise-ft:0.5", suite=("one",), seeds=2), tmp_path / "out")
    records = [r for r in found.results if r.metric == "probe_accuracy_change" and r.dataset == MEAN]
    assert {(r.seeds, r.seed) for r in records} == {(2, None)}
    assert {r.interval for r in records} <= {"seeds+paired bootstrap", "identical"}


def test_nothing_lost_is_said(tmp_path: Path) -> None:
    from rich.console import Console

    facts = CompareFacts(version="0", command="", config={}, task="t", sets=("s",))
    about = {"task": "retention", "split": "suite", "method": "m", "backbone": "b", "readout": "r", "n": 9, "labels": 4}
    about |= {"interval": "paired bootstrap", "seed": 0, "seeds": 1, "against": "untouched", "retain": "none"}
    from keepsight.core import Result

    records = [
        Result(**about, metric="probe_accuracy_change", dataset=MEAN, value=-0.01, ci_low=-0.03, ci_high=0.01),
        Result(
            **{**about, "split": "test"},
            metric="refitted_accuracy_change",
            dataset="t",
            value=0.02,
            ci_low=0,
            ci_high=0.1,
        ),
    ]
    text = retention_markdown(facts, records, [CellFailure(method="m", retain=HOSTILE, seed=0, sentence="Bad.")])
    assert "the share kept is undefined" in " ".join(text.split())
    assert "<script" not in text
    console = Console(record=True, width=100)
    print_retention(facts, records, [], console)
    assert "undefined" in console.export_text()


def test_the_default_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = retention_config("task")
    full, lora = found.variants["finetune-full"], found.variants["finetune-lora"]
    assert full[0] == "none"
    assert set(full) - set(lora) == {"soup:3"}
    assert [alpha_of(v) for v in full if v.startswith("wise-ft")] == [i / 10 for i in range(11)]
    assert {"ftp", "spd", "procrustes", "rift-cov", "l2-sp", CONTROL} < set(lora)
    optim = found.base.finetune_full.training.optim
    assert (optim.lr, optim.warmup, found.base.finetune_full.epochs, found.base.split.labels) == (1e-4, 0.25, 5, 256)
    assert found.base.finetune_lora.training.optim.lr == 2e-3
    assert len(keys_of(found)) == 1 + len(full) + len(lora)
    folders = {key.folder(Path()) for key in keys_of(found)}
    assert len(folders) == len(keys_of(found))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"retain": "procustes"}, "did you mean procrustes"),
        ({"retain": "procrustes,procrustes"}, "twice"),
        ({"retain": "soup:1"}, "keeps nothing"),
        ({"retain": "tpgm"}, "split.validation"),
        ({"retain": " , "}, "--retain is empty"),
        ({"methods": "probe"}, "tune a backbone"),
        ({"assignments": ["retain=procrustes"]}, "use --retain"),
        ({"assignments": ["finetune_full.epoch=3"]}, "did you mean"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        retention_config("task", **given)


def test_bad_data_and_folders_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="There is no nowhere here"):
        compare_retention(config("none", suite=("nowhere",)), out)
    with pytest.raises(UserError, match="No data set of the suite is left"):
        compare_retention(config("none", suite=("task",)), out)
    assert not out.exists()
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no comparison"):
        compare_retention(config("none"), out)


def test_the_page_of_the_docs_names_every_penalty_with_its_weight() -> None:
    text = (Path(__file__).parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([0-9.]+) \|", text, flags=re.MULTILINE))
    assert {name: float(weight) for name, weight in said.items()} == {
        name: parse_penalty(name).weight for name in NAMES
    }
