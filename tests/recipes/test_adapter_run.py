"""A run with an adapter that stays in the network: killed and resumed it ends the same, and its saved model is the tuned one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from keepsight.adapters.blocks import switched_off
from keepsight.adapters.kept import adapter_tensors, kept_adapters
from keepsight.backbones.load import load_backbone
from keepsight.recipes.config import FINETUNED, METHODS, resolve
from keepsight.recipes.run import load_run

METHOD = "finetune-adaptformer"
SETTINGS: dict[str, Any] = {
    "backbone": {"name": "test_vit", "weights": "random", "size": 32},
    "readout": "3:mean",
    "methods": [METHOD],
    "seeds": 1,
    "split": {"labels": 40, "test": 100},
    "selection_folds": 0,
    "forgetting": {"measure": False},
    "finetune_adaptformer": {
        "epochs": 3,
        "training": {"checkpoint_steps": 2},
        "objective": {"first_block": 2, "adaptformer": {"bottleneck": 8}},
    },
}
SCRIPT = """
import json, os, signal, sys
import numpy as np
import keepsight
from keepsight.data.load import load_dataset
from keepsight.data.subset import subset
from keepsight.train import trainer
out, die, settings = sys.argv[1], sys.argv[2] == "die", json.loads(sys.argv[3])
save = trainer.save_checkpoint
def save_and_die(*a, **k):
    save(*a, **k)
    if die and a[1] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.save_checkpoint = save_and_die
keepsight.tune(subset(load_dataset("digits"), np.arange(300)), out=out, **settings)
"""


def test_killed_and_resumed_ends_the_same_and_is_saved_whole(tmp_path: Path) -> None:
    def start(out: str, end: str) -> int:
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / out), end, json.dumps(SETTINGS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KEEPSIGHT_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
        return done.returncode

    assert start("straight", "live") == 0
    assert start("killed", "die") == -signal.SIGKILL
    assert start("killed", "live") == 0
    folders = [tmp_path / out / "cells" / METHOD / "seed-0" for out in ("straight", "killed")]
    for name in ("model/backbone.safetensors", "model/head.safetensors", "probabilities.npy"):
        one, other = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in folders)
        assert one == other, name

    model = load_run(tmp_path / "killed").model
    kept = kept_adapters(model.backbone)
    assert kept is not None
    assert kept.blocks == (2, 3)
    assert not (folders[0] / "model" / "adapter").exists()
    weights = load_file(folders[0] / "model" / "backbone.safetensors")
    trained = adapter_tensors(model.backbone)
    assert len(trained) == 2 * 4
    assert all(torch.equal(weights[name], tensor.cpu()) and tensor.any() for name, tensor in trained.items())
    images = torch.randn(2, 3, 32, 32)
    untouched = load_backbone("test_vit", weights="random", size=32)
    with torch.no_grad(), switched_off(model.backbone):
        assert torch.equal(model.backbone(images, (3,))[0].patches, untouched(images, (3,))[0].patches)
    assert np.isfinite(np.load(folders[1] / "probabilities.npy")).all()


def test_every_finetuning_has_settings_of_its_own() -> None:
    config = resolve("demo", assignments=["finetune_dora.objective.lora.rank=2", "finetune_osf.epochs=3"])
    assert set(FINETUNED) == {method for method in METHODS if method.startswith("finetune-")}
    assert all(config.finetuning(method).epochs for method in FINETUNED)
    assert config.finetuning("finetune-dora").objective.lora.variant == "dora"
    assert config.finetuning("finetune-dora").objective.lora.rank == 2
    assert config.finetuning("finetune-lora").objective.lora.variant == "plain"
    assert config.finetuning("finetune-osf").training.optim.weight_decay == 0
