"""Fits on the cached features of a frozen backbone that are solved and not trained by steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from keepsight.core import FeatureMethod, Head
from keepsight.export.model import TunedModel
from keepsight.methods.tokens import TokenConfig
from keepsight.recipes.context import Cell, Context, Fitted, Indices
from keepsight.recipes.tokens import token_of


def fit_head(
    context: Context,
    cell: Cell,
    method: FeatureMethod,
    unlabelled: Indices,
    token: TokenConfig | None = None,
) -> Head:
    """The head of a method on the cell's labelled features, on those of `unlabelled`, and on tokens of both."""
    x_NF = context.extractor.features(cell.labelled, context.readout)
    u_MF = context.extractor.features(unlabelled, context.readout) if len(unlabelled) else x_NF[:0]
    tokens = (
        token_of(context, dataclasses.replace(cell, unlabelled=unlabelled), token) if token and token.views else None
    )
    return method.fit(x_NF, context.labels(cell.labelled), u_MF, len(context.dataset.classes), cell.seed, tokens)


def fit_frozen(
    context: Context,
    cell: Cell,
    method: FeatureMethod,
    token: TokenConfig | None = None,
) -> Fitted:
    """A method on the features of a frozen backbone."""
    head = fit_head(context, cell, method, cell.unlabelled, token).eval()
    pixels = context.config.data_options.pixels
    model = TunedModel(
        cell.method,
        context.backbone,
        context.readout,
        head,
        context.dataset.classes,
        pixels=pixels,
        multilabel=context.dataset.targets is not None,
    )

    def predict() -> NDArray[np.float32]:
        x_NF = context.extractor.features(cell.measured_on, context.readout)
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = context.probabilities(head(x_NF)).numpy()
        return probabilities

    return Fitted(model, predict, sum(p.numel() for p in head.parameters()))
