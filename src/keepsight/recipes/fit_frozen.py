"""Fits on the cached features of a frozen backbone that are solved and not trained by steps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import FeatureMethod, Head
from keepsight.data.transforms import AugmentConfig
from keepsight.export.model import TunedModel
from keepsight.recipes.context import Cell, Context, Fitted, Indices


def view_features(context: Context, indices: Indices, count: int, augmentation: AugmentConfig) -> list[Tensor]:
    """Features [N, F] of `count` augmented views of these images, from the cache as far as they are there."""
    views = [context.extractor.view(number, augmentation) for number in range(1, count + 1)]
    return [view.features(indices, context.readout) for view in views]


def fit_head(
    context: Context,
    cell: Cell,
    method: FeatureMethod,
    unlabelled: Indices,
    views: int = 0,
    augmentation: AugmentConfig | None = None,
) -> Head:
    """The head of a method on the cell's labelled features, on those of `unlabelled`, and on `views` augmented views of both."""
    x_NF = context.extractor.features(cell.labelled, context.readout)
    u_MF = context.extractor.features(unlabelled, context.readout) if len(unlabelled) else x_NF[:0]
    both = np.concatenate([cell.labelled, unlabelled])
    of_views = view_features(context, both, views, augmentation or AugmentConfig())
    return method.fit(x_NF, context.labels(cell.labelled), u_MF, len(context.dataset.classes), cell.seed, of_views)


def fit_frozen(
    context: Context,
    cell: Cell,
    method: FeatureMethod,
    views: int = 0,
    augmentation: AugmentConfig | None = None,
) -> Fitted:
    """A method on the features of a frozen backbone."""
    head = fit_head(context, cell, method, cell.unlabelled, views, augmentation).eval()
    pixels = context.config.data_options.pixels
    model = TunedModel(cell.method, context.backbone, context.readout, head, context.dataset.classes, pixels=pixels)

    def predict() -> NDArray[np.float32]:
        x_NF = context.extractor.features(cell.measured_on, context.readout)
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = torch.softmax(head(x_NF), dim=1).numpy()
        return probabilities

    return Fitted(model, predict, sum(p.numel() for p in head.parameters()))
