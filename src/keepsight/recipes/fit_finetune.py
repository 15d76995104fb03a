"""Fits that train a backbone on labelled images: fine-tuning of all weights, of adapters or of biases."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from keepsight.core import Method, processes
from keepsight.data.streams import Stream
from keepsight.data.transforms import load_batch
from keepsight.export.adapter import fused_adapter
from keepsight.export.model import TunedModel
from keepsight.features.states import States
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune
from keepsight.methods.frozen import Probe
from keepsight.recipes.config import FinetuneSettings
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.fit_frozen import fit_head
from keepsight.train import BatchSource, ImageBatches, StateBatches, load_trained_state, train


def fit_finetune(context: Context, cell: Cell, adapter: Adapter, settings: FinetuneSettings) -> Fitted:
    """Cross-entropy on the cell's labelled images through the backbone."""
    probe = fit_head(context, cell, Probe(context.config.probe), cell.unlabelled[:0])
    from_states = settings.views > 0 and settings.objective.first_block > 1

    sharded = settings.training.sharding != "none"

    def build() -> Finetune:
        # A copy to be cut into shares is made beside the device, which may hold the weights only once.
        backbone = copy.deepcopy(context.backbone.cpu() if sharded else context.backbone)
        head = copy.deepcopy(probe)
        assert isinstance(head, LinearHead)
        return Finetune(backbone, context.readout, head, adapter, settings.objective, from_states)

    batches = _batches(context, cell, settings, from_states)
    method = build()
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    steps = settings.epochs * math.ceil(len(cell.labelled) / settings.batch_size)
    with context.trackers(cell) as report:
        outcome = train(
            method,
            batches,
            steps,
            settings.training,
            context.checkpoints(cell),
            partial(validation_score, context, cell, method) if len(cell.validation) else None,
            report,
            f"{cell.method} {cell.name}",
        )
    if sharded:  # what is cut into shares cannot be merged: go on with a whole one
        device = next(method.parameters()).device
        method = build().to(device)
        load_trained_state(method, outcome.state)
    adapter_alone = fused_adapter(method.encoder.peft_model) if method.encoder.peft_model is not None else None
    method.encoder.merge()
    model = TunedModel(
        cell.method,
        method.encoder.backbone.eval(),
        context.readout,
        method.head.eval(),
        context.dataset.classes,
        adapter_alone,
        context.config.data_options.pixels,
    )

    def predict() -> NDArray[np.float32]:
        share = processes.mine(cell.measured_on)
        what = f"{cell.method} {cell.name} predicting"
        return processes.joined(model.probabilities(context.dataset.images, share, what=what))

    return Fitted(model, predict, trainable, outcome.selection, outcome.selected_step, outcome.steps)


def _batches(context: Context, cell: Cell, settings: FinetuneSettings, from_states: bool) -> BatchSource:
    dataset, stream = context.dataset, Stream(cell.labelled, settings.batch_size, cell.seed)
    if not from_states:
        preprocessing, augmentation = context.backbone.preprocessing, settings.augmentation
        return ImageBatches(
            dataset.images, dataset.labels, stream, None, preprocessing, augmentation, cell.seed, settings.views
        )
    states = States(
        context.checkpoints(cell),
        context.backbone,
        settings.objective.first_block - 1,
        dataset.images,
        cell.labelled,
        settings.augmentation,
        settings.views,
        cell.seed,
    )
    return StateBatches(states, dataset.labels, stream)


def validation_score(context: Context, cell: Cell, method: Method) -> float:
    """Minus the mean cross-entropy (nats) on the validation images: finer than accuracy where they are few.

    Processes take shares of them and exchange the losses. Shares may be uneven, but each process makes the same number of forward
    passes (the last image of a shorter share is taken twice), since a sharded model is gathered by all of them together.
    """
    share = processes.mine(cell.validation)
    longest = math.ceil(len(cell.validation) / processes.count())
    padded = np.concatenate([share, np.repeat(cell.validation[:1], longest - len(share))])
    device = next(method.parameters()).device
    losses = []
    for start in range(0, longest, 64):
        chosen = padded[start : start + 64]
        images = load_batch(context.dataset.images, chosen, context.backbone.preprocessing).to(device)
        with torch.no_grad():
            logits_BK = method.logits(images)
            losses.append(functional.cross_entropy(logits_BK, context.labels(chosen).to(device), reduction="none"))
    return -float(processes.joined(torch.cat(losses)[: len(share)].float().cpu().numpy()).mean())
