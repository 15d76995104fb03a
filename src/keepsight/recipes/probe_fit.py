"""Heads of probes, trained by the one trainer. Knows no probe."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from keepsight.core import Batch, Schedule, Trainable
from keepsight.core.files import atomic_directory, is_sound
from keepsight.core.progress import log
from keepsight.data.streams import Stream
from keepsight.train.batches import share_of
from keepsight.train.checkpoint import load_trained_state, trained_state
from keepsight.train.optim import OptimConfig
from keepsight.train.trainer import TrainConfig, train

WARMUP = 0.05
"""Share of the steps."""

CHECKPOINT_SECONDS = 30.0

WEIGHTS, ABOUT = "weights.safetensors", "about.json"


class RowBatches:
    """Batches of row numbers, as `core.probe.Fit` says."""

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self._stream = Stream(np.arange(examples, dtype=np.int64), batch_size, seed)

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `train.batches.BatchSource`."""
        rows = torch.from_numpy(share_of(self._stream.batch(step), share, shares))
        none = torch.empty(0, dtype=torch.int64)
        return Batch(rows, none, none)


@final
class TrainerFit:
    """The trainer as a `core.probe.Fit`: AdamW, a warm-up of a twentieth, a cosine, gradients cut at norm 1, float32.

    Trainings are numbered as they come, which is always the same order. One that was killed goes on at its checkpoint, and one that
    was finished is read again. Afterwards the model is on the CPU and in evaluation mode.

    Args:
        folder: For checkpoints and finished weights; of one measurement of one probe alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self.parameters = 0

    def __call__(self, model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
        """See `core.probe.Fit`."""
        self._number += 1
        self.parameters = max(self.parameters, sum(p.numel() for p in model.parameters() if p.requires_grad))
        name = f"{self._number:03d}-{re.sub(r'[^A-Za-z0-9-]+', '-', what)[:40]}"
        about = _about(model, examples, schedule, seed, what)
        finished = self._folder / f"{name}-done"
        if is_sound(finished) and (finished / ABOUT).read_text(encoding="utf-8") == about:
            load_trained_state(model, load_file(finished / WEIGHTS))
            log.info("%s: trained before", what)
        else:
            checkpoints = self._folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
            _train(model, examples, schedule, seed, what, checkpoints)
            with atomic_directory(finished, sealed=True) as temporary:
                save_file({n: t.clone() for n, t in trained_state(model).items()}, temporary / WEIGHTS)
                (temporary / ABOUT).write_text(about, encoding="utf-8")
            shutil.rmtree(checkpoints, ignore_errors=True)
        model.to("cpu").eval()


def _about(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> str:
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    facts = {"what": what, "examples": examples, "schedule": schedule.model_dump(), "seed": seed, "shapes": shapes}
    return json.dumps(facts, sort_keys=True)


def _train(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str, checkpoints: Path) -> None:
    config = TrainConfig(
        optim=OptimConfig(lr=schedule.lr, weight_decay=schedule.weight_decay, warmup=WARMUP),
        accumulate=1,
        precision="no",
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        train(
            model,
            RowBatches(examples, schedule.batch_size, seed),
            schedule.steps,
            config,
            checkpoints,
            None,
            None,
            what,
        )
