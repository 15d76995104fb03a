"""Fits that train a backbone on labelled images: fine-tuning of all weights, of adapters or of biases."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from keepsight.core import Method, processes
from keepsight.data.streams import Stream
from keepsight.data.transforms import AugmentConfig, load_batch
from keepsight.export.adapter import fused_adapter
from keepsight.export.model import TunedModel
from keepsight.features.states import States
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune
from keepsight.methods.frozen import Probe
from keepsight.objectives.weight_space import averaged_state
from keepsight.recipes.config import FinetuneSettings
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.fit_frozen import fit_head
from keepsight.recipes.retain import after_training, as_it_starts, attach, with_reference_images
from keepsight.train import BatchSource, ImageBatches, StateBatches, load_trained_state, train


def fit_finetune(context: Context, cell: Cell, adapter: Adapter, settings: FinetuneSettings) -> Fitted:
    """Cross-entropy on the cell's labelled images through the backbone."""
    retain = context.config.retain
    if retain.soup > 1:
        return _soup(context, cell, adapter, settings, retain.soup)
    probe = fit_head(context, cell, Probe(context.config.probe), cell.unlabelled[:0])
    from_states = settings.views > 0 and settings.objective.first_block > 1

    sharded = settings.training.sharding != "none"

    def build() -> Finetune:
        # A copy to be cut into shares is made beside the device, which may hold the weights only once.
        backbone = copy.deepcopy(context.backbone.cpu() if sharded else context.backbone)
        head = copy.deepcopy(probe)
        assert isinstance(head, LinearHead)
        return Finetune(backbone, context.readout, head, adapter, settings.objective, from_states)

    batches = with_reference_images(context, cell, _batches(context, cell, settings, from_states), from_states)
    method = build()
    start = as_it_starts(context, method)
    comes_again = settings.views > 0 or settings.augmentation == AugmentConfig.none()
    trained = attach(context, cell, method, method.encoder, comes_again)
    score = partial(validation_score, context, cell, method) if len(cell.validation) else None
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    steps = settings.epochs * math.ceil(len(cell.labelled) / settings.batch_size)
    with context.trackers(cell) as report:
        outcome = train(
            trained,
            batches,
            steps,
            settings.training,
            context.checkpoints(cell),
            score,
            report,
            f"{cell.method} {cell.name}",
        )
    if sharded:  # what is cut into shares cannot be merged: go on with a whole one
        device = next(method.parameters()).device
        method = build()
        trained = attach(context, cell, method, method.encoder).to(device)
        load_trained_state(trained, outcome.state)
    after_training(context, cell, method, start, score)
    method.encoder.after_training()
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
        context.dataset.targets is not None,
    )

    return Fitted(
        model,
        _prediction(context, cell, model),
        trainable,
        outcome.selection,
        outcome.selected_step,
        outcome.steps,
    )


def _prediction(context: Context, cell: Cell, model: TunedModel) -> Callable[[], NDArray[np.float32]]:
    """What predicts where the cell is measured; processes share the images."""

    def predict() -> NDArray[np.float32]:
        share = processes.mine(cell.measured_on)
        what = f"{cell.method} {cell.name} predicting"
        return processes.joined(model.probabilities(context.dataset.images, share, what=what))

    return predict


def _soup(context: Context, cell: Cell, adapter: Adapter, settings: FinetuneSettings, members: int) -> Fitted:
    """Several fits from the same start, in other orders and augmentations; their merged weights are averaged."""
    alone = context.config.model_copy(update={"retain": context.config.retain.model_copy(update={"soup": 1})})
    one = replace(context, config=alone)
    fits: list[Fitted] = []

    def states() -> Iterator[dict[str, Tensor]]:
        for number in range(members):
            torch.manual_seed(cell.seed)
            part = replace(cell, name=f"{cell.name}/member-{number}", seed=cell.seed + MEMBER_SEED * number)
            fits[:] = [fit_finetune(one, part, adapter, settings)]
            model = fits[0].model
            assert model is not None
            yield torch.nn.ModuleList([model.backbone.network, model.head]).state_dict()

    mean = averaged_state(states())
    model = fits[0].model
    assert model is not None
    torch.nn.ModuleList([model.backbone.network, model.head]).load_state_dict(mean)
    # Without an adapter of its own: the mean of products BA is no product of this rank.
    pixels = context.config.data_options.pixels
    model = TunedModel(
        cell.method,
        model.backbone,
        context.readout,
        model.head,
        context.dataset.classes,
        pixels=pixels,
        multilabel=model.multilabel,
    )
    return replace(fits[0], model=model, predict=_prediction(context, cell, model))


MEMBER_SEED = 1_000_033
"""Between the members of a soup."""


def _batches(context: Context, cell: Cell, settings: FinetuneSettings, from_states: bool) -> BatchSource:
    dataset, stream = context.dataset, Stream(cell.labelled, settings.batch_size, cell.seed)
    if not from_states:
        preprocessing, augmentation = context.backbone.preprocessing, settings.augmentation
        return ImageBatches(
            dataset.images, dataset.truth, stream, None, preprocessing, augmentation, cell.seed, settings.views
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
    return StateBatches(states, dataset.truth, stream)


def validation_score(context: Context, cell: Cell, method: Method) -> float:
    """Minus the mean of `log_losses` (nats) on the validation images: finer than accuracy where they are few.

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
            losses.append(log_losses(logits_BK, context.labels(chosen).to(device)))
    return -float(processes.joined(torch.cat(losses)[: len(share)].float().cpu().numpy()).mean())


def log_losses(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The cross-entropy [B] of each image in nats; with targets [B, K] the mean over classes of the binary one."""
    if labels_B.ndim == 1:
        return functional.cross_entropy(logits_BK, labels_B, reduction="none")
    each_BK = functional.binary_cross_entropy_with_logits(logits_BK, labels_B.to(logits_BK), reduction="none")
    return each_BK.mean(dim=1)
