"""Fits of content-style: on cached features, or through a backbone that is tuned."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keepsight.core import CollapsedError, processes
from keepsight.core.progress import log
from keepsight.heads.content_style import ContentStyleHead
from keepsight.methods.content_style import ContentStyle, ContentStyleConfig
from keepsight.methods.encoder import Adapter
from keepsight.methods.guide import GuideConfig, make_guide, unguided
from keepsight.recipes.content_style_settings import ContentStyleSettings, TunedContentStyleSettings
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.fit_semi import Nodes, fit_on_features, fit_on_images

LOOKED_AT = 512
"""Images on which a tuned backbone is checked for a collapse."""


def fit_content_style(context: Context, cell: Cell, settings: ContentStyleSettings) -> Fitted:
    """Content-style on cached features.

    Raises:
        CollapsedError: The training ended in a model that predicts too few of the classes.
    """
    _say_if_supervised(cell)
    built: list[tuple[ContentStyle, Nodes]] = []

    def build(nodes: Nodes) -> ContentStyle:
        method = _method(nodes, settings.objective, settings.guide, settings.steps(len(nodes.z_ND)))
        built.append((method, nodes))
        return method

    fitted = fit_on_features(context, cell, settings, build)
    method, nodes = built[-1]
    with torch.no_grad():
        device = next(method.parameters()).device
        check_collapse(cell, torch.softmax(method.logits(nodes.z_ND.to(device)), dim=1).cpu(), method.prior_K.cpu())
    return fitted


def fit_tuned_content_style(
    context: Context, cell: Cell, settings: TunedContentStyleSettings, adapter: Adapter
) -> Fitted:
    """Content-style with the backbone tuned, too.

    Raises:
        CollapsedError: The training ended in a model that predicts too few of the classes.
    """
    _say_if_supervised(cell)
    built: list[ContentStyle] = []

    def build(nodes: Nodes) -> ContentStyle:
        built.append(_method(nodes, settings.objective, settings.guide, settings.steps(len(nodes.z_ND))))
        return built[-1]

    fitted = fit_on_images(context, cell, settings, adapter, build)
    both = np.concatenate([cell.labelled, cell.unlabelled])
    rng = np.random.default_rng((cell.seed, 3))
    seen = np.sort(rng.choice(both, min(LOOKED_AT, len(both)), replace=False))
    share = processes.mine(seen)
    chances = processes.joined(fitted.model.probabilities(context.dataset.images, share, what="checking"))
    check_collapse(cell, torch.from_numpy(chances), built[-1].prior_K.cpu())
    return fitted


def check_collapse(cell: Cell, chance_NK: Tensor, prior_K: Tensor) -> None:
    """A run that ended with fewer than half of the classes is an error and no result.

    Counted is exp(entropy), the effective number of classes, of the mean prediction and of the prior.

    Raises:
        CollapsedError: It did.
    """
    predicted, expected = effective_classes(chance_NK.mean(dim=0)), effective_classes(prior_K)
    hard = effective_classes(torch.bincount(chance_NK.argmax(dim=1), minlength=len(prior_K)) / len(chance_NK))
    if not torch.isfinite(chance_NK).all() or max(predicted, 1) < expected / 2 or max(hard, 1) < expected / 2:
        raise CollapsedError(
            f"{cell.method} {cell.name} collapsed: it predicts {min(predicted, hard):.1f} classes (exp of the entropy) where about "
            f"{expected:.1f} are expected, so there is no result; lower the learning rate or the critics' weights, or keep more labels."
        )


def effective_classes(share_K: Tensor) -> float:
    """exp(-sum p log p): K for an even distribution, 1 for a single class.

    Example:
        >>> round(effective_classes(torch.tensor([0.5, 0.5, 0.0])), 3)
        2.0
    """
    return float(torch.exp(-torch.xlogy(share_K, share_K).sum()))


def _say_if_supervised(cell: Cell) -> None:
    if len(cell.unlabelled) == 0:
        log.warning("%s %s has no unlabelled images: it is the supervised case.", cell.method, cell.name)


def _method(nodes: Nodes, objective: ContentStyleConfig, guide: GuideConfig, steps: int) -> ContentStyle:
    features, reduced = nodes.reduction.axes_FD.shape
    head = ContentStyleHead(
        features=features,
        reduced=reduced,
        classes=nodes.num_classes,
        hidden=objective.hidden,
        style=objective.style if objective.decomposes else 0,
        style_hidden=objective.style_hidden,
        decoder_hidden=objective.decoder_hidden,
    )
    head.reduction.load_state_dict(nodes.reduction.state_dict())
    if objective.propagated or objective.neighbours:
        found = make_guide(nodes.z_ND, nodes.views, nodes.labels_L, nodes.num_classes, nodes.seed, guide)
    else:
        found = unguided(nodes.labels_L, nodes.num_classes)
    return ContentStyle(nodes.encoder, head, found, objective, steps, nodes.seed)
