"""The sharpness of a tuned model's loss on the images it was fitted on. Knows no suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from keepsight.core import Dataset, UserError
from keepsight.data.load import load_dataset
from keepsight.data.splits import Splits
from keepsight.data.transforms import load_batch
from keepsight.evaluate.sharpness import sharpness
from keepsight.export.model import TunedModel
from keepsight.recipes.config import resolve
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.origin import ANCESTORS
from keepsight.report.forgetting_records import SharpnessFindings

BATCH = 64


def own_images(model: Path | None) -> tuple[Dataset, Sequence[int]]:
    """The data set of the run that a model lies in, and the images of it whose labels the first seed's models learnt from.

    Raises:
        UserError: The model lies in no run, or the run's data cannot be read any more or has changed.
    """
    places = [] if model is None else [model.resolve(), *model.resolve().parents[:ANCESTORS]]
    run = next(
        (place for place in places if (place / "splits.json").is_file() and (place / "config.yaml").is_file()), None
    )
    if run is None:
        raise UserError(
            "Sharpness is measured on the images that a model was fitted on, and the model lies in no run's folder that would say "
            "which they are: give the run, or leave --sharpness out."
        )
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config = resolve(settings["data"], settings=settings)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"The configuration {run / 'config.yaml'} cannot be read: restore it, or leave --sharpness out."
        ) from error
    dataset = load_dataset(config.data, config.data_options)
    return dataset, Splits.read(run / "splits.json", dataset).draws[0].labelled.tolist()


def measure_sharpness(
    model: TunedModel, dataset: Dataset, labelled: Sequence[int], config: ForgettingConfig
) -> SharpnessFindings:
    """`evaluate.sharpness` of the mean cross-entropy (nats) on labelled images, unaugmented; the backbone's weights are perturbed
    and the head's are not."""
    chosen = np.asarray(labelled, dtype=np.int64)
    if len(chosen) > config.sharpness_images:
        chosen = np.sort(np.random.default_rng((config.seed, 6)).choice(chosen, config.sharpness_images, replace=False))
    position = {name: i for i, name in enumerate(model.classes)}
    labels_N = torch.tensor([position[dataset.classes[k]] for k in dataset.labels[chosen].tolist()])
    device = next(model.backbone.parameters()).device
    head, readout = model.head.to(device).eval(), model.readout.resolved(model.backbone.depth)
    model.backbone.eval()
    starts = range(0, len(chosen), BATCH)
    batches = [load_batch(dataset.images, chosen[i : i + BATCH], model.backbone.preprocessing) for i in starts]

    def loss() -> float:
        total = 0.0
        for start, batch in zip(starts, batches, strict=True):
            x_BF = readout.read(model.backbone(batch.to(device), readout.blocks))
            total += F.cross_entropy(head(x_BF), labels_N[start : start + BATCH].to(device), reduction="sum").item()
        return total / len(chosen)

    network: nn.Module = model.backbone.network
    found = sharpness(network, loss, config.rho, config.pairs, config.seed)
    return SharpnessFindings(
        loss=found.loss, rise=found.rise, spread=found.spread, rho=found.rho, pairs=found.pairs, images=len(chosen)
    )
