"""Fits of methods that are trained by steps on labelled and unlabelled images: on cached features, or through a backbone.

Knows no method: `build` makes one from the `Nodes`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from keepsight.core import Batch, Head, Method, UserError, processes
from keepsight.data.streams import Stream
from keepsight.export.adapter import fused_adapter
from keepsight.export.model import TunedModel
from keepsight.heads.reduction import Reduction
from keepsight.methods.encoder import Adapter, CachedFeatures, Encoder, TunedBackbone
from keepsight.methods.tokens import TokenConfig
from keepsight.recipes.context import Cell, Context, Fitted, Indices
from keepsight.recipes.fit_finetune import validation_score
from keepsight.recipes.retain import after_training, as_it_starts, attach, with_reference_images
from keepsight.recipes.semi_settings import SemiSettings, TunedSemiSettings
from keepsight.recipes.tokens import token_of
from keepsight.train import BatchSource, FeatureBatches, ImageBatches, load_trained_state, train

UNLABELLED_SEED = 1_000_003
"""Added to the seed of the unlabelled stream: streams of one seed would visit labelled and unlabelled images in step."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """All images that a fit learns from, labelled ones first; `Batch.rows` are numbers of nodes.

    Attributes:
        z_ND: Tokens [N, D] of the plain images, under the backbone as it was before any training.
        views: Tokens [N, D] of augmented views of the same images.
        labels_L: Class indices [L] of the first L nodes.
        num_classes: K.
        reduction: From features [B, F] to tokens; a head gets a copy of its state.
        encoder: What a batch's inputs go through: `CachedFeatures` where they are tokens already, else the `TunedBackbone`, whose
            features [B, F] go through the head's reduction.
        seed: Of whatever is drawn.
    """

    z_ND: Tensor
    views: tuple[Tensor, ...]
    labels_L: Tensor
    num_classes: int
    reduction: Reduction
    encoder: Encoder
    seed: int


Build = Callable[[Nodes], Method]
"""Makes the method; its `head` attribute is a `Head` on features as they are read out."""


def fit_on_features(
    context: Context,
    cell: Cell,
    settings: SemiSettings,
    build: Build,
    finish: Callable[[Head], Head] = lambda head: head,
) -> Fitted:
    """A method trained on cached tokens; under several processes all call this.

    Labelled images come in any view, the plain one included, the others plain and, as `Batch.strong`, in an augmented view.
    `finish` makes the head that is kept of the one that was trained.
    """
    nodes = _nodes(context, cell, settings.token)
    method = build(nodes)
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    count = len(nodes.z_ND)
    labels_N = torch.cat([nodes.labels_L, torch.full((count - len(nodes.labels_L),), -1)])
    labelled = Stream(np.arange(len(nodes.labels_L)), settings.batch_size, cell.seed)
    unlabelled = _unlabelled(np.arange(count), settings, cell)
    batches = FeatureBatches(nodes.z_ND, labels_N, labelled, unlabelled, nodes.views, cell.seed)
    validate = None
    if len(cell.validation):
        z_VD = nodes.reduction(context.extractor.features(cell.validation, context.readout))
        validate = partial(_token_score, method, z_VD, context.labels(cell.validation))
    with context.trackers(cell) as report:
        outcome = train(
            method,
            batches,
            settings.steps(count),
            settings.training,
            context.checkpoints(cell),
            validate,
            report,
            f"{cell.method} {cell.name}",
        )
    head = finish(_head(method)).eval()
    pixels = context.config.data_options.pixels
    model = TunedModel(cell.method, context.backbone, context.readout, head, context.dataset.classes, pixels=pixels)

    def predict() -> NDArray[np.float32]:
        x_NF = context.extractor.features(cell.measured_on, context.readout)
        with torch.inference_mode():
            logits_NK = head(x_NF.to(next(head.parameters()).device))
            probabilities: NDArray[np.float32] = torch.softmax(logits_NK, dim=1).cpu().numpy()
        return probabilities

    return Fitted(model, predict, trainable, outcome.selection, outcome.selected_step, outcome.steps)


def fit_on_images(context: Context, cell: Cell, settings: TunedSemiSettings, adapter: Adapter, build: Build) -> Fitted:
    """A method trained through a copy of the backbone; under several processes all call this.

    The reduction is fitted on the features of the backbone as it was, and stays.
    """
    sharded = settings.training.sharding != "none"
    nodes = _nodes(context, cell, settings.token)

    def fresh() -> tuple[TunedBackbone, Method]:
        # A copy to be cut into shares is made beside the device, which may hold the weights only once.
        backbone = copy.deepcopy(context.backbone.cpu() if sharded else context.backbone)
        encoder = TunedBackbone(backbone, context.readout, adapter, settings.adapter)
        return encoder, build(dataclasses.replace(nodes, encoder=encoder))

    if context.config.retain.soup > 1:
        raise UserError(
            f"The retention soup averages fine-tunings: leave it out with {cell.method}, or use finetune-full."
        )
    encoder, method = fresh()
    start = as_it_starts(context, method)
    trained = attach(context, cell, method, encoder)
    score = partial(validation_score, context, cell, method) if len(cell.validation) else None
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    with context.trackers(cell) as report:
        outcome = train(
            trained,
            with_reference_images(context, cell, _image_batches(context, cell, settings)),
            settings.steps(len(nodes.z_ND)),
            settings.training,
            context.checkpoints(cell),
            score,
            report,
            f"{cell.method} {cell.name}",
        )
    if sharded:  # what is cut into shares cannot be merged: go on with a whole one
        device = next(method.parameters()).device
        encoder, method = fresh()
        load_trained_state(attach(context, cell, method, encoder).to(device), outcome.state)
    after_training(context, cell, method, start, score)
    encoder.after_training()
    adapter_alone = fused_adapter(encoder.peft_model) if encoder.peft_model is not None else None
    encoder.merge()
    model = TunedModel(
        cell.method,
        encoder.backbone.eval(),
        context.readout,
        _head(method).eval(),
        context.dataset.classes,
        adapter_alone,
        context.config.data_options.pixels,
    )

    def predict() -> NDArray[np.float32]:
        share = processes.mine(cell.measured_on)
        what = f"{cell.method} {cell.name} predicting"
        return processes.joined(model.probabilities(context.dataset.images, share, what=what))

    return Fitted(model, predict, trainable, outcome.selection, outcome.selected_step, outcome.steps)


def _nodes(context: Context, cell: Cell, token: TokenConfig) -> Nodes:
    """The cell's nodes; views that the cache lacks are computed by all processes together."""
    made = token_of(context, cell, token, together=True)
    labels_L, classes = context.labels(cell.labelled), len(context.dataset.classes)
    return Nodes(made.z_ND, made.views, labels_L, classes, Reduction.of(made), CachedFeatures(), cell.seed)


def _unlabelled(indices: Indices, settings: SemiSettings, cell: Cell) -> Stream:
    return Stream(indices, settings.unlabelled_batch_size, cell.seed + UNLABELLED_SEED)


def _image_batches(context: Context, cell: Cell, settings: TunedSemiSettings) -> BatchSource:
    """Labelled images augmented, all of them plain and strongly augmented; `rows` are numbers of nodes."""
    dataset, both = context.dataset, np.concatenate([cell.labelled, cell.unlabelled])
    images = ImageBatches(
        dataset.images,
        dataset.labels,
        Stream(cell.labelled, settings.batch_size, cell.seed),
        _unlabelled(both, settings, cell),
        context.backbone.preprocessing,
        settings.augmentation,
        cell.seed,
        strong=settings.strong,
    )
    node_of = torch.full((len(dataset.images),), -1, dtype=torch.int64)
    node_of[torch.from_numpy(both)] = torch.arange(len(both))

    def source(step: int, share: int, shares: int) -> Batch:
        batch = images(step, share, shares)
        return dataclasses.replace(batch, rows=node_of[batch.rows])

    return source


def _token_score(method: Method, z_VD: Tensor, labels_V: Tensor) -> float:
    """Minus the mean cross-entropy (nats) on the tokens of the validation images."""
    device = next(method.parameters()).device
    with torch.no_grad():
        return -functional.cross_entropy(method.logits(z_VD.to(device)), labels_V.to(device)).item()


def _head(method: Method) -> Head:
    head = method.head
    assert isinstance(head, Head)
    return head
