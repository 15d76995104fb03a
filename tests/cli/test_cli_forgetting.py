"""keepsight forgetting, on real packaged weights that were really tuned; and one sentence for what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keepsight.backbones.load import BackboneConfig, load_backbone
from keepsight.core.result import read_results
from keepsight.data.load import load_dataset
from keepsight.recipes.origin import Origin, sketch, write_origin

MODEL = {"name": "vit_s14_imgfocus", "size": 28}


@pytest.fixture
def tuned(run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten steps of full fine-tuning of the packaged ViT, at a rate that does harm."""
    settings = [
        "backbone.size=28",
        "readout=last:cls",
        "seeds=1",
        "split.labels=40",
        "split.test=20",
        "selection_folds=0",
    ]
    steps = ["finetune_full.epochs=1", "finetune_full.batch_size=8", "finetune_full.training.optim.lr=1e-3"]
    out = tmp_path / "run"
    printed = run("tune", data, "--methods", "finetune-full", "--out", out, *settings, *steps)
    assert printed.code == 0, printed.err
    images = load_dataset(data).images
    keys = sketch(images.content_hash(i) for i in range(len(images)))
    config = BackboneConfig(**MODEL)
    write_origin(out, Origin(backbone=config, weights=load_backbone(config).weights_hash(), data="data", images=keys))
    return out


def test_a_tuned_vit_is_measured_and_what_it_was_tuned_on_is_left_out(
    run, tuned: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "forgot"
    arguments = ["--suite", "digits", "--suite", data, "--per-set", 50, "--out", out]
    printed = run("forgetting", tuned, *arguments, "--sharpness")
    assert printed.code == 0, printed.err
    assert "linear probe" in printed.out
    assert "On one data set that was not trained on" in printed.out
    found = json.loads((out / "forgetting.json").read_text())
    assert [s["name"] for s in found["sets"]] == ["digits"]
    assert "data is left out: at least 120 of its 120 images are in the data of the training." in " ".join(
        found["notes"]
    )
    assert len(found["sets"][0]["blocks"]) == 13
    assert found["weights"]["total"] > 1e-4
    assert found["weights"]["blocks"]["0"] > 0
    assert found["mean"]["probe_accuracy"]["before"] > 0.5
    assert found["sets"][0]["blocks"][-1]["cka"] < 0.99
    assert found["sharpness"]["images"] == 40
    assert any(r.metric == "weight_distance" for r in read_results(out / "results.jsonl"))
    again = run("forgetting", tuned, *arguments)
    assert (again.code, len(again.errors)) == (2, 1)
    assert "--overwrite" in again.err


def test_what_cannot_be_measured_is_one_sentence(run, model: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((tmp_path / "nowhere",), "There is no tuned model"),
        ((model, "--readout", "99:cls", "--against", model), "changed no weight"),
        ((model, "--readout", "none"), "is not understood"),
        ((model, "--per-set", 3), "per-set"),
    ):
        printed = run("forgetting", *arguments)
        text = " ".join((printed.out + printed.err).split())
        assert said in text
        assert printed.code == (0 if "changed" in said else 2)
        assert len(printed.errors) == (0 if "changed" in said else 1)
    assert not (model / "forgetting").exists()
