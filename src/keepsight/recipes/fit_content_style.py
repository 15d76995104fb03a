"""Fits of content-style: on cached features, or through a backbone that is tuned."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from keepsight.core import CollapsedError, Head, processes
from keepsight.core.progress import log
from keepsight.heads.content_style import ContentStyleHead
from keepsight.methods.content_style import ContentStyle, ContentStyleConfig
from keepsight.methods.encoder import Adapter
from keepsight.methods.guide import (
    Guide,
    GuideConfig,
    ProbeEvidence,
    bank_of,
    compared,
    compared_again,
    make_guide,
    probe_evidence,
    unguided,
)
from keepsight.recipes.content_style_settings import ContentStyleSettings, TunedContentStyleSettings
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.fit_semi import Nodes, fit_on_features, fit_on_images

LOOKED_AT = 512
"""Images on which a tuned backbone is checked for a collapse."""


def fit_content_style(context: Context, cell: Cell, settings: ContentStyleSettings) -> Fitted:
    """Content-style on cached features, in one or more rounds (see `GuideConfig.rounds`).

    Raises:
        CollapsedError: The training ended in a model that predicts too few of the classes.
    """
    _say_if_supervised(cell)
    guides = Guides(settings.guide, settings.objective)
    _early_rounds(context, cell, settings, guides)
    return _fit_once(context, cell, settings, guides)


def fit_tuned_content_style(
    context: Context, cell: Cell, settings: TunedContentStyleSettings, adapter: Adapter
) -> Fitted:
    """Content-style with the backbone tuned, too; every round but the last is one on cached features.

    Raises:
        CollapsedError: The training ended in a model that predicts too few of the classes.
    """
    _say_if_supervised(cell)
    guides = Guides(settings.guide, settings.objective)
    frozen = ContentStyleSettings(
        token=settings.token, objective=settings.objective, guide=settings.guide, training=settings.frozen_training
    )
    _early_rounds(context, cell, frozen, guides)
    built: list[ContentStyle] = []

    def build(nodes: Nodes) -> ContentStyle:
        built.append(_method(nodes, settings.objective, guides.next(nodes), settings.steps(len(nodes.z_ND))))
        return built[-1]

    fitted = fit_on_images(context, cell, settings, adapter, build)
    both = np.concatenate([cell.labelled, cell.unlabelled])
    rng = np.random.default_rng((cell.seed, 3))
    seen = np.sort(rng.choice(both, min(LOOKED_AT, len(both)), replace=False))
    assert fitted.model is not None
    share = processes.mine(seen)
    chances = processes.joined(fitted.model.probabilities(context.dataset.images, share, what="checking"))
    check_collapse(cell, torch.from_numpy(chances), built[-1].prior_K.cpu())
    return fitted


class Guides:
    """The guide of each round: from the tokens first, then from what the round before has learnt, too.

    Args:
        config: Of the guides.
        objective: Without propagated targets and neighbours in it there is nothing to guide, and one round.
    """

    def __init__(self, config: GuideConfig, objective: ContentStyleConfig) -> None:
        self._config, self._needed = config, objective.propagated > 0 or objective.neighbours > 0
        self.rounds = config.rounds if self._needed else 1
        self._content_NK: Tensor | None = None
        self._known: tuple[Tensor, ProbeEvidence] | None = None

    def next(self, nodes: Nodes) -> Guide:
        """The guide for another training on these nodes, the same ones every time."""
        if not self._needed:
            return unguided(nodes.labels_L, nodes.num_classes)
        if self._known is None:
            probe = probe_evidence(nodes.z_ND, nodes.labels_L, nodes.num_classes, nodes.seed, self._config)
            self._known = compared(nodes.z_ND, nodes.views), probe
        unit_ND, probe = self._known
        if self._content_NK is not None:
            unit_ND = compared_again(unit_ND, self._content_NK, self._config.content_weight)
        return make_guide(unit_ND, nodes.labels_L, nodes.num_classes, probe, self._config)

    def learnt(self, method: ContentStyle, nodes: Nodes) -> None:
        """Take note of what a round has learnt: its mean content over an image and the mean of its views."""
        device = next(method.parameters()).device
        mean_ND = torch.stack([nodes.z_ND, *nodes.views]).mean(dim=0)
        with torch.no_grad():
            seen = [method.head.content(z.to(device)).cpu() for z in (nodes.z_ND, mean_ND)]
        self._content_NK = torch.stack(seen).mean(dim=0)


def _early_rounds(context: Context, cell: Cell, settings: ContentStyleSettings, guides: Guides) -> None:
    """All rounds but the last, of which only the content matters: they have no style."""
    objective = settings.objective.model_copy(update={"style": 0})
    for number in range(1, guides.rounds):
        early = dataclasses.replace(cell, name=f"{cell.name}/round-{number}", keep_model=False)
        _fit_once(context, early, settings.model_copy(update={"objective": objective}), guides)


def _fit_once(context: Context, cell: Cell, settings: ContentStyleSettings, guides: Guides) -> Fitted:
    built: list[tuple[ContentStyle, Nodes]] = []

    def build(nodes: Nodes) -> ContentStyle:
        method = _method(nodes, settings.objective, guides.next(nodes), settings.steps(len(nodes.z_ND)))
        built.append((method, nodes))
        return method

    def finish(head: Head) -> Head:
        method, nodes = built[-1]
        votes_NK = method.guide.posteriors_NK
        if settings.guide.vote == 0 or not len(votes_NK):
            return head
        assert isinstance(head, ContentStyleHead)
        device = votes_NK.device
        return head.remember(bank_of(nodes.z_ND, nodes.views).to(device), votes_NK, settings.guide.vote).to(
            next(head.parameters()).device
        )

    fitted = fit_on_features(context, cell, settings, build, finish)
    method, nodes = built[-1]
    guides.learnt(method, nodes)
    assert fitted.model is not None
    assert isinstance(fitted.model.head, ContentStyleHead)
    head = fitted.model.head
    with torch.no_grad():
        found = head.content(nodes.z_ND.to(next(head.parameters()).device)).cpu()
    check_collapse(cell, found, method.prior_K.cpu())
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
            f"{expected:.1f} are expected; there is no result: lower the learning rate or critics' weights, or keep more labels."
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


def _method(nodes: Nodes, objective: ContentStyleConfig, guide: Guide, steps: int) -> ContentStyle:
    torch.manual_seed(nodes.seed)  # a round starts from the same weights whatever was drawn before it, on any process
    features, reduced = nodes.reduction.axes_FD.shape
    head = ContentStyleHead(
        features=features,
        reduced=reduced,
        classes=nodes.num_classes,
        hidden=objective.hidden,
        style=objective.style if objective.decomposes else 0,
        style_hidden=objective.style_hidden,
        decoder_hidden=objective.decoder_hidden,
        linear=int(objective.linear),
    )
    head.reduction.load_state_dict(nodes.reduction.state_dict())
    return ContentStyle(nodes.encoder, head, guide, objective, steps, nodes.seed)
