"""What a sweep would do and cost, without doing it: for `--dry-run`."""

from __future__ import annotations

import math
from pathlib import Path

from keepsight.adapters.freeze import train_reached
from keepsight.core import Config, Readout
from keepsight.recipes.config import FINETUNED
from keepsight.recipes.plan import seconds_per_image
from keepsight.recipes.sweep_check import checked
from keepsight.recipes.sweep_config import SweepConfig, family
from keepsight.recipes.sweep_points import Opened, views_of


class SweepPlan(Config):
    """Counts, and seconds estimated from batches timed on this machine.

    Attributes:
        points: Data sets x backbones x sizes x label counts.
        frozen_cells, trainable_cells: Fits; the frozen ones take seconds each and are not in the estimate.
        seconds_features: One pass over all images and their views for every data set, backbone and size, if nothing is cached.
        seconds_finetuning: All cells of the `finetune-...` methods with their predictions.
        not_estimated: Trainable methods that the estimate leaves out.
    """

    points: int
    frozen_cells: int
    trainable_cells: int
    seconds_features: float
    seconds_finetuning: float
    not_estimated: tuple[str, ...]


def sweep_plan(config: SweepConfig) -> SweepPlan:
    """Read all data, load every backbone, time a few batches.

    Raises:
        UserError: What the sweep itself would refuse.
    """
    opened = Opened()
    points, counts = checked(config, Path(), opened)
    methods, seeds = config.base.methods, config.base.seeds
    timed: dict[str, tuple[float, float]] = {}
    features = finetuning = 0.0
    for point in points:
        key, own = point.config.backbone.model_dump_json(), point.config
        if key not in timed:
            backbone = opened.backbone(point)
            readout = (Readout() if own.readout == "auto" else Readout.parse(own.readout)).resolved(backbone.depth)
            forward = seconds_per_image(backbone, readout, backward=False)
            step = 0.0
            if any(m in FINETUNED for m in methods):
                train_reached(backbone, readout)
                step = seconds_per_image(backbone, readout, backward=True)
            timed[key] = forward, step
        forward, step = timed[key]
        count, labels = counts[own.data], own.split.labels or 0
        if labels == config.labels[0]:
            features += (count.images + len(views_of(own)) * count.pool) * forward
        for method in methods:
            if method in FINETUNED:
                settings = own.finetuning(method)
                images = settings.epochs * math.ceil(labels / settings.batch_size) * settings.batch_size
                finetuning += seeds * (images * step + count.test * forward)
    return SweepPlan(
        points=len(points),
        frozen_cells=len(points) * seeds * sum(family(m) == "frozen" for m in methods),
        trainable_cells=len(points) * seeds * sum(family(m) == "trainable" for m in methods),
        seconds_features=features,
        seconds_finetuning=finetuning,
        not_estimated=tuple(m for m in methods if family(m) == "trainable" and m not in FINETUNED),
    )
