"""`retain` end to end: on fine-tuning and on content-style through the backbone, and what it must not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keepsight import tune
from keepsight.core import Dataset, UserError
from keepsight.core.result import read_results
from keepsight.methods.penalties import NAMES
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.retain_settings import RetainConfig, parsed
from keepsight.recipes.suite import load_suite
from keepsight.recipes.within import Kept, KeptWeight

BACKBONE = {
    "name": "vit_small_patch14_dinov2",
    "weights": "random",
    "size": 28,
    "timm_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0},
}
SETTINGS = {
    "backbone": BACKBONE,
    "readout": "2:mean",
    "seeds": 1,
    "split": {"labels": 12, "test": 16},
    "selection_folds": 0,
    "forgetting": {"measure": False},
    "trackers": [],
}
SHORT = {"epochs": 2, "batch_size": 6, "objective": {"head_start": "random"}, "training": {"optim": {"lr": 1e-2}}}


def weights(blobs: Dataset, out: Path, method: str = "finetune-full", **settings: object) -> dict[str, np.ndarray]:
    name = method.replace("-", "_")
    run = tune(blobs, out=out, methods=[method], **{**SETTINGS, name: SHORT, **settings})
    backbone = run.model.backbone
    return {n: p.detach().numpy().copy() for n, p in backbone.network.state_dict().items()}


def moved(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(one[n] - other[n]).sum() for n in one)))


@pytest.mark.parametrize("method", ["finetune-full", "finetune-lora"])
def test_every_retention_holds_the_weights_back_or_changes_them(blobs: Dataset, tmp_path: Path, method: str) -> None:
    start = weights(blobs, tmp_path / "start", method, retain="wise-ft:0")
    plain = weights(blobs, tmp_path / "plain", method)
    none = weights(blobs, tmp_path / "none", method, retain="procrustes:0")
    assert moved(plain, none) == 0
    far = moved(plain, start)
    assert far > 0
    half = weights(blobs, tmp_path / "half", method, retain="wise-ft:0.5")
    assert moved(half, start) == pytest.approx(far / 2, rel=1e-3)
    for text in ("procrustes:100", "distill:100", "l2-sp:100000", "spd", "ftp"):
        held = weights(blobs, tmp_path / text.split(":")[0], method, retain=text)
        assert moved(held, plain) > 0
        assert moved(held, start) < 1.02 * far, text


def test_wise_ft_at_nothing_is_the_untouched_backbone(blobs: Dataset, tmp_path: Path) -> None:
    full = weights(blobs, tmp_path / "full", retain="wise-ft:0")
    lora = weights(blobs, tmp_path / "lora", "finetune-lora", retain="wise-ft:0")
    assert moved(full, lora) == 0


def test_a_soup_is_the_mean_of_its_members(blobs: Dataset, tmp_path: Path) -> None:
    soup = weights(blobs, tmp_path / "soup", retain="soup:2")
    again = weights(blobs, tmp_path / "again", retain="soup:2")
    plain = weights(blobs, tmp_path / "plain")
    assert moved(soup, again) == 0
    assert moved(soup, plain) > 0


def test_tpgm_learns_its_radii_on_validation_images(blobs: Dataset, tmp_path: Path) -> None:
    split = {"labels": 12, "test": 16, "validation": 0.25}
    rule = {"rules": [{"name": "tpgm", "steps": 20, "lr": 0.05}]}
    start = weights(blobs, tmp_path / "start", retain="wise-ft:0", split=split)
    plain = weights(blobs, tmp_path / "plain", split=split)
    held = weights(blobs, tmp_path / "held", retain=rule, split=split)
    assert moved(held, start) <= moved(plain, start) + 1e-6
    assert moved(held, plain) > 0
    with pytest.raises(UserError, match=r"split\.validation"):
        weights(blobs, tmp_path / "without", retain="tpgm")


def test_content_style_takes_penalties_and_reference_images(blobs: Dataset, tmp_path: Path) -> None:
    short = {
        "epochs": 1,
        "least_steps": 2,
        "batch_size": 4,
        "unlabelled_batch_size": 4,
        "token": {"views": 1, "reduced": 8},
    }
    settings = {"retain": {**parsed("cka,ldifs:blocks=1+2"), "reference_images": "digits", "reference_batch": 4}}
    plain = weights(blobs, tmp_path / "plain", "content-style-lora", content_style_lora=short)
    held = weights(blobs, tmp_path / "held", "content-style-lora", content_style_lora=short, **settings)
    assert moved(plain, held) > 0


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean procrustes"):
        tune("digits", out=tmp_path / "run", retain="procustes:2")
    assert not RetainConfig()
    assert RetainConfig.model_validate("none") == RetainConfig()
    assert RetainConfig.model_validate("wise-ft").wise_ft == 0.5


def test_a_checkpoint_of_a_training_with_penalties_can_be_written(blobs: Dataset, tmp_path: Path) -> None:
    often = {**SHORT, "training": {"optim": {"lr": 1e-2}, "checkpoint_steps": 1}}
    plain = weights(blobs, tmp_path / "plain", retain=",".join(NAMES))
    assert moved(weights(blobs, tmp_path / "often", finetune_full=often, retain=",".join(NAMES)), plain) == 0


def test_a_limit_on_forgetting_moves_weights_back(blobs: Dataset, tmp_path: Path) -> None:
    suite = {"measure": True, "suite": ["digits"], "per_set": 200}
    rough = {**SHORT, "training": {"optim": {"lr": 0.3}}}
    plain = weights(blobs, tmp_path / "plain", finetune_full=rough)
    start = weights(blobs, tmp_path / "start", finetune_full=rough, retain="wise-ft:0")
    wide = weights(blobs, tmp_path / "wide", finetune_full=rough, forgetting={**suite, "limit": 100})
    assert moved(wide, plain) == 0
    strict = weights(blobs, tmp_path / "strict", finetune_full=rough, forgetting={**suite, "limit": 0.5})
    kept = Kept.model_validate_json((tmp_path / "strict/retained/finetune-full-seed-0.json").read_text())
    assert kept.sets == ("digits",)
    assert kept.images == 100
    assert kept.changes["1.0"] < -0.5  # this training forgets much
    assert moved(strict, start) == pytest.approx(kept.alpha * moved(plain, start), rel=1e-3)
    assert kept.alpha == 0 or kept.changes[f"{kept.alpha:.1f}"] >= -0.5
    assert kept.changes[f"{kept.alpha + 0.1:.1f}"] < -0.5
    # What is reported is measured on other images than what alpha was chosen on.
    halves = [
        load_suite(ForgettingConfig(suite=("digits",), per_set=200, part=part), ()) for part in ("choice", "report")
    ]
    names = [{half.sets[0].images.content_hash(i) for i in range(100)} for half in halves]
    assert not names[0] & names[1]
    reported = read_results(tmp_path / "strict/forgetting/finetune-full/results.jsonl") if kept.alpha else []
    assert all(r.n == 100 for r in reported if r.dataset == "digits")
    with pytest.raises(UserError, match="prompts change the output from the start"):
        weights(blobs, tmp_path / "vpt", "finetune-vpt", finetune_vpt=SHORT, forgetting={**suite, "limit": 1})
    with pytest.raises(UserError, match="no data set to measure on"):
        weights(blobs, tmp_path / "none", forgetting={"measure": False, "limit": 1})


@pytest.mark.parametrize(("limit", "tried"), [(100, {"1", "0.25"}), (0, {"1", "4"})])
def test_a_limit_on_forgetting_chooses_the_weight_of_penalties(
    blobs: Dataset, tmp_path: Path, limit: float, tried: set[str]
) -> None:
    rough = {**SHORT, "training": {"optim": {"lr": 0.3}}}
    suite = {"measure": False, "suite": ["digits"], "per_set": 200, "limit": limit}
    found = weights(blobs, tmp_path / "found", finetune_full=rough, retain="l2-sp:0.001", forgetting=suite)
    kept = KeptWeight.model_validate_json((tmp_path / "found/retained/finetune-full-seed-0-weight.json").read_text())
    assert set(kept.changes) == tried
    if limit:
        assert (kept.factor, kept.kept) == (0.25, True)
        alone = weights(blobs, tmp_path / "alone", finetune_full=rough, retain="l2-sp:0.00025")
        assert moved(found, alone) == 0
    else:  # too weak a penalty, even multiplied: alpha does the rest
        assert kept.changes["4"] < 0
        assert (kept.factor, kept.kept) == (16, False)
        name = "found/retained/finetune-full-seed-0-weight-16.json"
        assert Kept.model_validate_json((tmp_path / name).read_text()).alpha < 1
