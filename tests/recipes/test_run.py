"""Whole runs on real images and a small network: what is in the folder, resuming, refusing, predicting."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_digits

import keepsight
from keepsight.core import UserError
from keepsight.core.result import read_results
from keepsight.export.predictions import write_predictions
from keepsight.recipes.config import DEFAULT_METHODS
from keepsight.recipes.folder import run_folder
from keepsight.recipes.run import load_run, tune

SMALL: dict[str, Any] = {
    "backbone": {"name": "test_vit", "weights": "random", "size": 32},
    "readout": "2,3:mean",
    "seeds": 2,
    "split": {"labels": 40, "test": 200},
    "selection_folds": 2,
    "forgetting": {"measure": False},
    "finetune_lora": {"epochs": 2},
    "finetune_full": {"epochs": 2},
}
FILES = {
    "config.yaml",
    "environment.json",
    "splits.json",
    "results.jsonl",
    "recommendation.json",
    "origin.json",
    "report.html",
    "report.json",
    "report.md",
    "diagnosis.json",
    "losses.json",
    "notes.json",
    "tested.json",
    "command.txt",
    "log.txt",
    "tensorboard",
    "cells",
    "model",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real digits as an image folder, 60 of them unlabelled."""
    root = tmp_path_factory.mktemp("data") / "digits"
    found = load_digits()
    for i in range(400):
        folder = root / ("unlabelled" if i >= 340 else str(found.target[i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> keepsight.Run:
    out = tmp_path_factory.mktemp("runs") / "all"
    return tune(digits, out=out, **{**SMALL, "split": {"labels": 40, "test": 0.3}})


def test_the_folder_holds_what_it_promises(finished: keepsight.Run) -> None:
    assert {p.name for p in finished.path.iterdir() if not p.name.startswith(".")} == FILES
    assert {p.name for p in (finished.path / "model").iterdir()} == {
        "model.json",
        "origin.json",
        "backbone.safetensors",
        "head.safetensors",
        "README.md",
    } | ({"adapter"} if finished.recommended == "finetune-lora" else set())
    assert list((finished.path / "tensorboard").rglob("events*"))
    assert not list(finished.path.rglob("*.tmp"))
    assert "features" in (finished.path / "log.txt").read_text()
    environment = json.loads((finished.path / "environment.json").read_text())
    assert environment["packages"]["timm"]


def test_images_that_cannot_be_read_stop_a_run_or_are_left_out_and_counted(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    victims = sorted(data.rglob("*.png"))[:2]
    victims[0].write_bytes(victims[0].read_bytes()[:60])
    victims[1].write_text("not an image")
    settings = {**SMALL, "methods": ["probe"], "seeds": 1}
    with pytest.raises(UserError, match=rf"{victims[0].name}.*2 of 400 images.*--skip-bad"):
        tune(data, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
    run = tune(data, out=tmp_path / "run", skip_bad=True, **settings)
    skipped = json.loads((run.path / "skipped.json").read_text())
    assert [Path(bad["name"]).name for bad in skipped] == [v.name for v in victims]
    assert "398 images" in (run.path / "log.txt").read_text()
    report = (run.path / "report.html").read_text()
    assert "Images left out, since they cannot be read: 2" in report
    assert "2 images (0.5 %) could not be read" in report


def test_images_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = (rng.integers(0, 100, (60, 16, 16)) + 60 * labels[:, None, None]).astype(np.uint8)
    run = tune((pixels, labels), out=tmp_path / "run", **{**SMALL, "methods": ["probe"], "split": {"test": 0.3}})
    assert next(r for r in run.results if r.metric == "error" and r.split == "test").n == 18
    assert run.predict(pixels[:3]).labels == ("0", "1", "2")
    again = tune((pixels, labels), out=tmp_path / "run", **{**SMALL, "methods": ["probe"], "split": {"test": 0.3}})
    assert again.results == run.results


def test_pixel_settings_are_kept_with_the_model(tmp_path: Path) -> None:
    """12-bit detector counts in .npy files: dark unless the range is given, in training and in predicting alike."""
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "counts" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        counts = rng.integers(1000, 1500, (16, 16, 5)) + 1500 * (i % 2) * (np.arange(5) == 3)
        np.save(folder / f"{i}.npy", counts.astype(np.uint16))
    pixels = {"channels": [3], "channels_first": False, "value_range": [0, 4095]}
    settings = {**SMALL, "methods": ["probe"], "split": {"test": 10}, "data_options": {"pixels": pixels}}
    run = tune(tmp_path / "counts", out=tmp_path / "run", **settings)
    assert next(r for r in run.results if r.metric == "error" and r.split == "test").value == 0
    file = tmp_path / "counts" / "1" / "1.npy"
    in_python = run.predict(file)
    assert in_python.labels == ("1",)
    write_predictions(run.model, [str(file)], tmp_path / "p.jsonl")
    written = json.loads((tmp_path / "p.jsonl").read_text())
    assert written["label"] == "1"
    found = keepsight.evaluate_model(run.path, tmp_path / "counts", split="all")
    assert next(r for r in found.records if r.metric == "error").value == 0


def test_every_method_has_records_with_intervals(finished: keepsight.Run) -> None:
    results = read_results(finished.path / "results.jsonl")
    for method in DEFAULT_METHODS:
        of = [r for r in results if r.method == method]
        summary = [r for r in of if r.split == "test" and r.seed is None]
        assert {r.metric for r in summary} == {"error", "accuracy", "balanced_accuracy", "macro_f1", "ece"}
        for r in summary:
            assert r.ci_low <= r.value <= r.ci_high
            assert (r.interval, r.seeds, r.labels, r.selection) == ("seeds+bootstrap", 2, 40, "last")
        assert len([r for r in of if r.metric == "error" and r.seed is not None and r.split == "test"]) == 2
        assert len([r for r in of if r.split == "cross-validation"]) == 1
    by_method = {r.method: r.trainable_parameters for r in results}
    assert by_method["knn"] == by_method["label-propagation"] == 0
    assert by_method["probe"] == 10 * 128 + 10
    assert by_method["probe"] < by_method["finetune-lora"] < by_method["finetune-full"]


def test_the_recommendation_does_not_depend_on_the_test_labels(
    finished: keepsight.Run, digits: Path, tmp_path: Path
) -> None:
    # The same data twice, once with the labels of all test images exchanged: everything but the test figures must stay.
    splits = json.loads((finished.path / "splits.json").read_text())
    names = sorted(p.relative_to(digits).as_posix() for p in digits.rglob("*.png"))
    held_out = {names[i] for i in splits["test"]}
    labelled = {names[i] for i in splits["draws"][0]["labelled"]}

    def start(shift: int) -> keepsight.Run:
        rows = ["path,label,split"]
        for name in names:
            label = name.split("/")[0]
            if name in held_out:
                rows.append(f"{digits / name},{(int(label) + shift) % 10},test")
            else:
                rows.append(
                    f"{digits / name},{label if name in labelled else ''},{'train' if name in labelled else ''}"
                )
        (tmp_path / f"{shift}.csv").write_text("\n".join(rows))
        settings = {
            **SMALL,
            "methods": ["knn", "probe", "label-propagation"],
            "readout": "auto",
            "seeds": 1,
            "split": {},
        }
        return tune(tmp_path / f"{shift}.csv", out=tmp_path / str(shift), **settings)

    def figures(run: keepsight.Run, split: str) -> dict[str, float]:
        return {r.method: r.value for r in run.results if r.split == split and r.metric == "error"}

    honest, exchanged = start(0), start(1)
    assert (honest.recommended, honest.why) == (exchanged.recommended, exchanged.why)
    assert honest.results[0].readout == exchanged.results[0].readout
    assert figures(honest, "cross-validation") == figures(exchanged, "cross-validation")
    assert figures(honest, "test")["probe"] < 0.8 < figures(exchanged, "test")["probe"]


def test_a_finished_run_is_not_run_again(finished: keepsight.Run, digits: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.path.rglob("*.json")}
    again = tune(digits, out=finished.path, **{**SMALL, "split": {"labels": 40, "test": 0.3}})
    assert again.recommended == finished.recommended
    assert before == {p: p.stat().st_mtime_ns for p in finished.path.rglob("*.json")}


def test_another_configuration_is_refused(finished: keepsight.Run, digits: Path) -> None:
    with pytest.raises(UserError, match="another configuration"):
        tune(digits, out=finished.path, **{**SMALL, "seeds": 1})


def test_a_second_process_is_refused(digits: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="Another process is working"):
        tune(digits, out=tmp_path / "run", **SMALL)


def test_the_model_predicts(finished: keepsight.Run, digits: Path) -> None:
    run = load_run(finished.path)
    paths = sorted((digits / "3").glob("*.png"))
    found = run.predict(paths)
    assert found.classes == tuple(str(i) for i in range(10))
    assert found.probabilities.shape == (len(paths), 10)
    one = run.model.predict(Image.open(paths[0]))
    np.testing.assert_allclose(one.probabilities[0], found.probabilities[0], atol=1e-5)


def test_seeds_draw_their_own_labels_and_share_the_test(finished: keepsight.Run) -> None:
    splits = json.loads((finished.path / "splits.json").read_text())
    first, second = splits["draws"]
    assert set(first["labelled"]) != set(second["labelled"])
    assert not set(splits["test"]) & (set(first["labelled"]) | set(first["unlabelled"]))


def test_validation_selects_and_is_recorded(digits: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "seeds": 1, "methods": ["finetune-lora"], "split": {"labels": 60, "validation": 0.3}}
    settings["finetune_lora"] = {"epochs": 3, "training": {"validate_every": 2}}
    run = tune(digits, out=tmp_path / "run", **settings)
    assert {r.selection for r in run.results} == {"validation"}
    cell = json.loads((run.path / "cells" / "finetune-lora" / "seed-0" / "cell.json").read_text())
    assert cell["selected_step"] % 2 == 0 or cell["selected_step"] == cell["steps"]


def test_one_label_a_class_and_no_test(digits: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "methods": ["knn", "probe", "label-propagation"], "split": {"labels": 10, "test": 0}}
    run = tune(digits, out=tmp_path / "run", **settings)
    assert run.recommended == "label-propagation"
    assert "by rule" in run.why
    assert run.predict(sorted((digits / "3").glob("*.png"))[0]).probabilities.shape == (1, 10)


def test_changed_data_is_noticed_at_resume(digits: Path, tmp_path: Path) -> None:
    import shutil

    data = tmp_path / "copy"
    shutil.copytree(digits, data)
    settings = {**SMALL, "methods": ["knn"], "seeds": 1}
    run = tune(data, out=tmp_path / "run", **settings)
    (run.path / "recommendation.json").unlink()
    next((data / "5").glob("*.png")).unlink()
    with pytest.raises(UserError, match="changed since"):
        tune(data, out=tmp_path / "run", **settings)


def test_default_folders_resume_or_count_up(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "methods": ["knn"], "seeds": 1}
    first = tune(digits, **settings)
    assert first.path == Path("runs/digits")
    assert tune(digits, **settings).path == Path("runs/digits-2")
    (tmp_path / "runs/digits-2/recommendation.json").unlink()
    assert tune(digits, **settings).path == Path("runs/digits-2")
    config = keepsight.recipes.resolve(str(digits), settings=settings)
    assert run_folder(config, None, overwrite=False) == Path("runs/digits-3")


def test_an_output_that_is_not_a_run_is_left_alone(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    (tmp_path / "config.yaml").write_text("data: mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and holds no run"):
            tune(digits, out=tmp_path, overwrite=overwrite, **SMALL)
    with pytest.raises(UserError, match="is a file"):
        tune(digits, out=tmp_path / "thesis.txt", **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "important"


def test_overwrite_replaces_and_bad_input_removes_nothing(digits: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "methods": ["knn"], "seeds": 1}
    first = tune(digits, out=tmp_path / "run", **settings)
    before = {p.name for p in first.path.iterdir()}
    for bad in ({"backbone": {"name": "vit_smal"}}, {"readout": "99:cls"}, {"split": {"labels": 3}}):
        with pytest.raises(UserError):
            tune(digits, out=tmp_path / "run", overwrite=True, **{**settings, **bad})
    assert load_run(first.path).results == first.results
    second = tune(digits, out=tmp_path / "run", overwrite=True, **{**settings, "methods": ["probe"]})
    assert {p.name for p in second.path.iterdir()} == before
    assert {r.method for r in second.results} == {"probe"}
    assert [p.name for p in (second.path / "cells").iterdir()] == ["probe"]


def test_bad_input_leaves_no_folder_behind(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than the 10 classes"):
        tune(digits, out=tmp_path / "run", **{**SMALL, "split": {"labels": 3}})
    assert not (tmp_path / "run").exists()


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from keepsight.core.progress import log
import keepsight.export.model as cells
from keepsight.recipes.run import tune
import json
data, out, where = sys.argv[1:4]
settings = json.loads(sys.argv[4])
if where == "training":
    from keepsight.train import trainer
    save = trainer.save_checkpoint
    def save_and_die(*a, **k):
        save(*a, **k)
        if a[1] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    trainer.save_checkpoint = save_and_die
if where == "evaluating":
    def die(*a, **k):
        os.kill(os.getpid(), signal.SIGKILL)
    cells.TunedModel.probabilities = die
if where == "saving":
    save_model = cells.TunedModel.save
    def die_saving(self, path, version):
        save_model(self, path, version)
        if self.method == "finetune-lora":
            os.kill(os.getpid(), signal.SIGKILL)
    cells.TunedModel.save = die_saving
tune(data, out=out, **settings)
"""


def test_killed_while_training_evaluating_and_saving_ends_the_same(digits: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "methods": ["probe", "finetune-lora"], "seeds": 1}
    settings["finetune_lora"] = {"epochs": 3, "training": {"checkpoint_steps": 2}}

    def start(out: str, where: str) -> int:
        arguments = [sys.executable, "-c", KILLED, str(digits), str(tmp_path / out), where, json.dumps(settings)]
        done = subprocess.run(
            arguments, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
        return done.returncode

    assert start("straight", "nowhere") == 0
    for where in ("training", "evaluating", "saving"):
        assert start("killed", where) == -signal.SIGKILL
    assert start("killed", "nowhere") == 0
    straight, killed = load_run(tmp_path / "straight"), load_run(tmp_path / "killed")
    for name in (
        "cells/finetune-lora/seed-0/model/backbone",
        "cells/finetune-lora/seed-0/model/head",
        "model/backbone",
    ):
        digests = [
            hashlib.sha256((r.path / f"{name}.safetensors").read_bytes()).hexdigest() for r in (straight, killed)
        ]
        assert digests[0] == digests[1], name

    def figures(run: keepsight.Run) -> list[tuple[str, str, str, int | None, float]]:
        return [(r.method, r.split, r.metric, r.seed, r.value) for r in run.results]

    assert figures(straight) == figures(killed)
    assert not list(killed.path.rglob("*.tmp"))
