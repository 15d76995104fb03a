"""A small convolutional network trained from nothing on the labelled images: the rival that knows no pretrained backbone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from keepsight.backbones.small_cnn import SmallCnn
from keepsight.core import Readout, processes
from keepsight.data.streams import Stream
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.recipes.config import ScratchSettings
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.fit_finetune import validation_score
from keepsight.train import ImageBatches, train


def fit_scratch(context: Context, cell: Cell, settings: ScratchSettings) -> Fitted:
    """Cross-entropy on the cell's labelled images; the run's backbone, readout and cached features are not looked at."""
    dataset = context.dataset
    backbone = SmallCnn(settings.width, seed=cell.seed)
    readout = Readout.parse(settings.readout).resolved(backbone.depth)
    side = backbone.preprocessing.size
    features = readout.read(backbone(torch.zeros(1, 3, side, side), readout.blocks)).shape[1]
    head = LinearHead(features, len(dataset.classes))
    method = Finetune(backbone, readout, head, "full", FinetuneConfig(head_start="random"))
    stream = Stream(cell.labelled, settings.batch_size, cell.seed)
    batches = ImageBatches(
        dataset.images, dataset.labels, stream, None, backbone.preprocessing, settings.augmentation, cell.seed
    )
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    of_backbone = replace(context, backbone=backbone, readout=readout)
    with context.trackers(cell) as report:
        outcome = train(
            method,
            batches,
            max(settings.steps, settings.epochs * math.ceil(len(cell.labelled) / settings.batch_size)),
            settings.training,
            context.checkpoints(cell),
            partial(validation_score, of_backbone, cell, method) if len(cell.validation) else None,
            report,
            f"{cell.method} {cell.name}",
        )
    pixels = context.config.data_options.pixels
    model = TunedModel(cell.method, backbone.eval(), readout, method.head.eval(), dataset.classes, pixels=pixels)

    def predict() -> NDArray[np.float32]:
        share = processes.mine(cell.measured_on)
        return processes.joined(
            model.probabilities(dataset.images, share, what=f"{cell.method} {cell.name} predicting")
        )

    return Fitted(model, predict, trainable, outcome.selection, outcome.selected_step, outcome.steps)
