"""Fits of FixMatch: temperature and threshold chosen on the labelled images, then on cached features or through a backbone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.core.progress import log
from keepsight.data.splits import stratified_folds
from keepsight.data.streams import Stream
from keepsight.methods.encoder import Adapter, CachedFeatures, Encoder
from keepsight.methods.fixmatch import FixMatch, FixMatchConfig
from keepsight.recipes.context import Cell, Context, Fitted, Indices
from keepsight.recipes.fit_semi import UNLABELLED_SEED, Nodes, fit_on_features, fit_on_images
from keepsight.recipes.fixmatch_settings import FixMatchSettings, TunedFixMatchSettings
from keepsight.train import FeatureBatches, train


def fit_fixmatch(context: Context, cell: Cell, settings: FixMatchSettings) -> Fitted:
    """FixMatch on cached features."""

    def build(nodes: Nodes) -> FixMatch:
        return _method(nodes, chosen(context, cell, settings, nodes), nodes.encoder)

    return fit_on_features(context, cell, settings, build)


def fit_tuned_fixmatch(context: Context, cell: Cell, settings: TunedFixMatchSettings, adapter: Adapter) -> Fitted:
    """FixMatch with the backbone tuned, too; what is chosen is chosen on features of the backbone as it was."""
    found: list[FixMatchConfig] = []

    def build(nodes: Nodes) -> FixMatch:
        if not found:
            found.append(chosen(context, cell, settings, nodes))
        return _method(nodes, found[0], nodes.encoder)

    return fit_on_images(context, cell, settings, adapter, build)


def chosen(
    context: Context, cell: Cell, settings: FixMatchSettings | TunedFixMatchSettings, nodes: Nodes
) -> FixMatchConfig:
    """The objective with the temperature and threshold that are most often right on labels hidden fold by fold.

    Log-loss breaks ties. Where a class has a single label nothing can be hidden, and the objective stays as it is.
    """
    search = settings.search
    folds = stratified_folds(nodes.labels_L.numpy(), search.folds, nodes.seed)
    if not folds:
        own = settings.objective
        log.info(
            "%s %s: a class has a single label, so temperature %g and threshold %g are the settings' own",
            cell.method,
            cell.name,
            own.temperature,
            own.threshold,
        )
        return own
    objectives = [
        settings.objective.model_copy(update={"temperature": temperature, "threshold": threshold})
        for temperature, threshold in search.candidates
    ]
    if len(objectives) == 1:
        return objectives[0]
    scores = []
    with torch.random.fork_rng(devices=[]):  # the real training starts from the same state with or without a search
        for number, objective in enumerate(objectives):
            logits_LK = torch.zeros(len(nodes.labels_L), nodes.num_classes)
            for fold, (training, hidden) in enumerate(folds):
                name = f"search/{number}-{fold}"
                logits_LK[torch.from_numpy(hidden)] = _hidden(
                    context, cell, settings, nodes, objective, training, hidden, name
                )
            right = (logits_LK.argmax(dim=1) == nodes.labels_L).double().mean().item()
            scores.append((right, -F.cross_entropy(logits_LK, nodes.labels_L).item()))
    best = max(range(len(scores)), key=scores.__getitem__)
    tried = ", ".join(
        f"({o.temperature:g}, {o.threshold:g}): {right:.3f}" for o, (right, _) in zip(objectives, scores, strict=True)
    )
    log.info(
        "%s %s: temperature %g and threshold %g, by accuracy on hidden labels: %s",
        cell.method,
        cell.name,
        objectives[best].temperature,
        objectives[best].threshold,
        tried,
    )
    return objectives[best]


def _hidden(
    context: Context,
    cell: Cell,
    settings: FixMatchSettings | TunedFixMatchSettings,
    nodes: Nodes,
    objective: FixMatchConfig,
    training: Indices,
    hidden: Indices,
    name: str,
) -> Tensor:
    """Logits [H, K] of the hidden labelled images after a short training in which they are unlabelled."""
    search, count = settings.search, len(nodes.labels_L)
    others = np.random.default_rng((nodes.seed, 3)).permutation(np.arange(count, len(nodes.z_ND)))[: search.images]
    rows = torch.from_numpy(np.concatenate([training, hidden, others]))
    labels_N = torch.full((len(rows),), -1)
    labels_N[: len(training)] = nodes.labels_L[torch.from_numpy(training)]
    method = FixMatch(
        CachedFeatures(), nodes.reduction, labels_N[: len(training)], nodes.num_classes, objective, nodes.seed
    )
    batches = FeatureBatches(
        nodes.z_ND[rows],
        labels_N,
        Stream(np.arange(len(training)), search.batch_size, nodes.seed),
        Stream(np.arange(len(rows)), search.unlabelled_batch_size, nodes.seed + UNLABELLED_SEED),
        [view_ND[rows] for view_ND in nodes.views],
        nodes.seed,
    )
    folder = context.checkpoints(cell) / name
    train(method, batches, search.steps, settings.training, folder, name=f"{cell.method} {cell.name} {name}")
    device = next(method.parameters()).device
    with torch.no_grad():
        return method.logits(nodes.z_ND[torch.from_numpy(hidden)].to(device)).cpu()


def _method(nodes: Nodes, objective: FixMatchConfig, encoder: Encoder) -> FixMatch:
    return FixMatch(encoder, nodes.reduction, nodes.labels_L, nodes.num_classes, objective, nodes.seed)
