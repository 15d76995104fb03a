"""`watched_probes`: a limit on forgetting holds for probes, too, and what chooses is not what is reported."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keepsight import tune
from keepsight.core import Dataset, Findings, Fit, Probe, Readout, Score, UserError, View
from keepsight.data.arrays import ArrayImages
from keepsight.recipes import watched_probes
from keepsight.recipes.compare_config import ladder_config
from keepsight.recipes.config import resolve
from keepsight.recipes.probe_settings import ProbingConfig
from keepsight.recipes.within import Kept, KeptWeight

BACKBONE = {
    "name": "vit_small_patch14_dinov2",
    "weights": "random",
    "size": 28,
    "timm_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0},
}
SETTINGS: dict[str, Any] = {
    "backbone": BACKBONE,
    "readout": "2:mean",
    "seeds": 1,
    "split": {"labels": 12, "test": 16},
    "selection_folds": 0,
    "trackers": [],
    "finetune_full": {
        "epochs": 2,
        "batch_size": 6,
        "objective": {"head_start": "random"},
        "training": {"optim": {"lr": 0.3}},
    },
    "finetune_lora": {"epochs": 2, "batch_size": 6, "training": {"optim": {"lr": 0.3}}},
}


class Similar(Probe):
    """How alike are the features to those of the first network that was asked? An error, in a unit where 0.01 is a point."""

    name = "ocr"
    size = 42  # not the run's: positions are resampled

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.images = ArrayImages(rng.integers(0, 255, (8, 42, 42)).astype(np.uint8))
        self.first: torch.Tensor | None = None
        self.asked: list[float] = []

    def key(self) -> str:
        return hashlib.sha256(b"similar").hexdigest()

    def measure(self, view: View, fit: Fit, shuffled: bool) -> Findings:
        del fit, shuffled
        x = view.vectors(np.arange(8), Readout.parse("last:mean"))
        if self.first is None:
            self.first = x
        far = 1 - torch.cosine_similarity(x, self.first, dim=1).numpy().astype(np.float64)
        self.asked.append(float(far.mean()))
        return Findings((Score("distance", "noise", far[None], better="lower"),))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[ProbingConfig, Similar]]:
    """Probes that were made, with their settings."""
    made: list[tuple[ProbingConfig, Similar]] = []
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))

    def make(name: str, config: ProbingConfig, asked: Any) -> Probe:
        del name
        assert asked[0].trained_on
        made.append((config, Similar() if not made else made[0][1]))
        return made[-1][1]

    monkeypatch.setattr(watched_probes, "make_probe", make)
    return made


def limited(limit: float) -> dict[str, Any]:
    return {"measure": False, "suite": ["digits"], "per_set": 200, "limit": limit}


@pytest.mark.parametrize("method", ["finetune-full", "finetune-lora"])
def test_weights_move_back_until_the_probe_keeps_within_the_limit(
    blobs: Dataset, tmp_path: Path, planted: list[tuple[ProbingConfig, Similar]], method: str
) -> None:
    name = f"retained/{method}-seed-0.json"
    settings = {**SETTINGS, "methods": [method]}
    tune(blobs, out=tmp_path / "free", forgetting=limited(100), **settings)
    assert Kept.model_validate_json((tmp_path / "free" / name).read_text()).alpha == 1  # the suite alone lets it be
    assert not planted
    tune(blobs, out=tmp_path / "held", forgetting=limited(1000), watched_probes=["ocr"], **settings)
    assert Kept.model_validate_json((tmp_path / "held" / name).read_text()).alpha == 1
    assert planted[0][1].asked[0] == pytest.approx(0, abs=1e-6)  # the untouched network comes first
    assert max(planted[0][1].asked) > 0.02
    limit = 50 * max(planted[0][1].asked)  # half of what was lost, in points
    tune(blobs, out=tmp_path / "half", forgetting=limited(limit), watched_probes=["ocr"], **settings)
    kept = Kept.model_validate_json((tmp_path / "half" / name).read_text())
    assert kept.alpha < 1
    assert kept.changes["1.0"] < -limit
    assert kept.alpha == 0 or kept.changes[f"{kept.alpha:.1f}"] >= -limit
    assert kept.changes[f"{kept.alpha + 0.1:.1f}"] < -limit
    assert {config.seed for config, _ in planted} == {watched_probes.SEED}  # not the items of `keepsight probe`


def test_the_weight_of_penalties_is_chosen_by_the_probe_too(
    blobs: Dataset, tmp_path: Path, planted: list[tuple[ProbingConfig, Similar]]
) -> None:
    settings = {**SETTINGS, "methods": ["finetune-full"], "retain": "l2-sp:0.001", "watched_probes": ["ocr"]}
    tune(blobs, out=tmp_path / "run", forgetting=limited(0), **settings)
    kept = KeptWeight.model_validate_json((tmp_path / "run/retained/finetune-full-seed-0-weight.json").read_text())
    assert set(kept.changes) == {"1", "4"}
    assert kept.changes["1"] <= -100 * min(far for far in planted[0][1].asked if far > 0)


def test_what_makes_no_sense_is_said_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="give one, such as --max-forgetting 1pp"):
        tune("nowhere", watched_probes=["ocr"])
    with pytest.raises(UserError, match="give one, such as --max-forgetting 1pp"):
        ladder_config("nowhere", settings={"watched_probes": ["ocr"]})
    assert ladder_config("nowhere", limit=1.0, settings={"watched_probes": ["ocr"]}).base.watched_probes == ("ocr",)
    with pytest.raises(UserError, match="the probe ocr cannot be watched by the limit"):
        resolve("nowhere", settings={"watched_probes": ["ocr", "vqa"], "probes": ["ocr"]})
    with pytest.raises(UserError, match="watched_probes"):
        resolve("nowhere", settings={"watched_probes": ["knn"]})  # asks the sets that the limit looks at anyway
