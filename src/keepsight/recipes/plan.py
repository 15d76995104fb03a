"""What a run would do and cost, without doing it: for `--dry-run`."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from keepsight.adapters.freeze import train_reached
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Config, Readout
from keepsight.data.load import load_dataset
from keepsight.data.splits import folds_of, make_splits
from keepsight.recipes.config import FINETUNED, TuneConfig
from keepsight.recipes.multilabel import suited

BATCH = 16


class Plan(Config):
    """Counts, and seconds estimated from two batches timed on this machine.

    Attributes:
        dataset: Name.
        images, classes: Counts.
        labelled, validation, unlabelled, test: Images of the first seed's draw.
        backbone_parameters: All weights of the backbone.
        size: Input size, px.
        readout: As configured.
        cells: Fits, by method.
        seconds_features: One pass over all images, if nothing is cached.
        seconds_finetuning: All fine-tuning cells with their predictions.
    """

    dataset: str
    images: int
    classes: int
    labelled: int
    validation: int
    unlabelled: int
    test: int
    backbone_parameters: int
    size: int
    readout: str
    cells: dict[str, int]
    seconds_features: float
    seconds_finetuning: float


def seconds_per_image(backbone: Backbone, readout: Readout, backward: bool) -> float:
    """Seconds a forward pass takes (with `backward`, a training step) for one image of a batch."""
    images = torch.randn(BATCH, 3, backbone.preprocessing.size, backbone.preprocessing.size)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        with torch.set_grad_enabled(backward):
            x = readout.read(backbone(images, readout.blocks))
            if backward:
                x.square().mean().backward()  # type: ignore[no-untyped-call]
        seconds.append((time.monotonic() - start) / BATCH)
    return min(seconds)


def plan(config: TuneConfig) -> Plan:
    """Load data and backbone, make the splits, time two batches.

    Raises:
        UserError: What the run itself would refuse.
    """
    dataset = load_dataset(config.data, config.data_options)
    config = suited(config, dataset)
    splits = make_splits(dataset, config.split, tuple(range(config.seeds)))
    backbone = load_backbone(config.backbone)
    first = splits.draws[0]
    folds = 0
    if config.selection_folds >= 2 and len(config.methods) > 1:
        folds = len(folds_of(dataset, first.labelled, config.selection_folds, first.seed))
    # "auto" may choose any block: the estimate is for the deepest.
    readout = (Readout() if config.readout == "auto" else Readout.parse(config.readout)).resolved(backbone.depth)
    forward = seconds_per_image(backbone, readout, backward=False)
    finetuning = 0.0
    chosen = [m for m in config.methods if m in FINETUNED]
    if chosen:
        train_reached(backbone, readout)
        step = seconds_per_image(backbone, readout, backward=True)
        for method in chosen:
            settings = config.finetuning(method)
            images = settings.epochs * math.ceil(len(first.labelled) / settings.batch_size) * settings.batch_size
            share = config.seeds + (folds - 1 if folds else 0)  # each fold trains on (folds - 1) / folds of the labels
            finetuning += (
                share * images * step + (config.seeds * len(splits.test) + len(first.labelled) * bool(folds)) * forward
            )
    return Plan(
        dataset=dataset.name,
        images=len(dataset.images),
        classes=len(dataset.classes),
        labelled=len(first.labelled),
        validation=len(first.validation),
        unlabelled=len(first.unlabelled),
        test=len(splits.test),
        backbone_parameters=sum(int(np.prod(p.shape)) for p in backbone.parameters()),
        size=backbone.preprocessing.size,
        readout=config.readout,
        cells=dict.fromkeys(config.methods, config.seeds + folds),
        seconds_features=len(dataset.images) * forward,
        seconds_finetuning=finetuning,
    )
