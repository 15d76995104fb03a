"""The setting `retain`: penalties and weight rules, put on a training and, after it, on its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from keepsight.core import Method, Trainable, UserError, processes
from keepsight.core.progress import log
from keepsight.data.load import load_dataset
from keepsight.data.streams import Stream
from keepsight.data.transforms import load_batch
from keepsight.methods.anchors import anchors, pairs
from keepsight.methods.encoder import TunedBackbone
from keepsight.methods.penalties import About, make_penalty
from keepsight.methods.penalties_feature import RiftCovConfig
from keepsight.methods.penalties_weight import L2SpConfig
from keepsight.methods.reference import Reference
from keepsight.methods.retention import Attached, Retained
from keepsight.methods.weight_rules import FtpConfig, SpdConfig, TpgmConfig, learn_radii, make_rule
from keepsight.objectives.weight_space import between
from keepsight.recipes.context import Cell, Context
from keepsight.recipes.retain_settings import RetainConfig
from keepsight.recipes.within import check_limit, keep_within
from keepsight.train import BatchSource, WithReference, load_trained_state, trained_state

OF_ONE_CLASS = ("lwf", "r3f", "r4f", "pdr")
"""Penalties on softmax probabilities."""


def attach(context: Context, cell: Cell, method: Method, encoder: TunedBackbone, comes_again: bool = False) -> Method:
    """The method with the penalties and rules of the config, or the method itself where there are none.

    Call it before the training: what is there now is what is kept.

    Args:
        context: Its config has `retain`.
        cell: What is fitted.
        method: Tunes `encoder`; its `head` is a head on read-out features.
        encoder: The method's.
        comes_again: Images come again in the same view.
    """
    config = context.config.retain
    odd = [p.name for p in config.penalties if p.name in OF_ONE_CLASS and p.weight]
    if context.dataset.targets is not None and odd:
        raise UserError(
            f"The penalty {odd[0]} compares probabilities of classes that exclude each other, and {context.dataset.name} is "
            "multi-label: use one on features, such as procrustes or distill."
        )
    if not _anything(config):
        return method
    head = method.head
    assert isinstance(head, torch.nn.Module)
    pool = np.concatenate([cell.labelled, cell.unlabelled])
    needs_pool = any(isinstance(p, RiftCovConfig) and p.weight and p.source == "cached" for p in config.penalties)
    about = About(
        features=int(context.extractor.features(pool[:1], context.readout).shape[1]),
        depth=max(context.readout.blocks),
        classes=len(context.dataset.classes),
        seed=cell.seed,
        head=head,
        pool_NF=context.extractor.features(pool, context.readout) if needs_pool else None,
    )
    kept = config.kept_mib if comes_again and config.reference_images is None else 0
    return retained(config, method, encoder, head, about, kept)


def _anything(config: RetainConfig) -> bool:
    """Whether something happens during the training."""
    return any(p.weight for p in config.penalties) or any(not isinstance(r, TpgmConfig) for r in config.rules)


def retained(
    config: RetainConfig,
    method: Trainable,
    encoder: TunedBackbone,
    head: Callable[[Tensor], Tensor],
    about: About,
    kept_mib: int,
) -> Retained:
    """Anything trained, with the penalties and rules of a config.

    Args:
        config: See `RetainConfig`.
        method: Tunes `encoder`.
        encoder: Not trained yet: what is there now is what is kept.
        head: From read-out features [B, F] to class logits.
        about: What penalties are told, but for the weights.
        kept_mib: See `Reference`.
    """
    during = [rule for rule in config.rules if not isinstance(rule, TpgmConfig)]
    wanted = [penalty for penalty in config.penalties if penalty.weight]
    needs_weights = any(isinstance(p, L2SpConfig) for p in wanted) and not encoder.has_adapters
    held = anchors(encoder) if during or needs_weights else []
    about = replace(about, pairs=pairs(held), peft=encoder.peft_model)
    made = [(penalty, make_penalty(penalty, about)) for penalty in wanted]
    names = [penalty.name for penalty in wanted]
    attached = [
        Attached(p.name if names.count(p.name) == 1 else f"{p.name}_{i}", penalty, p.weight, p.margin)
        for i, (p, penalty) in enumerate(made)
    ]
    looks_back = any(penalty.uses_reference for _, penalty in made)
    reference = Reference(encoder, kept_mib) if looks_back else None
    rules = [make_rule(rule, held) for rule in during if isinstance(rule, FtpConfig | SpdConfig)]
    return Retained(method, encoder, head, attached, reference, rules)


def with_reference_images(context: Context, cell: Cell, batches: BatchSource, from_states: bool = False) -> BatchSource:
    """The batches, with reference images where the config names some.

    Raises:
        UserError: They cannot be used with cached lower blocks, or there are none.
    """
    config = context.config.retain
    if config.reference_images is None or not config.penalties:
        return batches
    if from_states:
        raise UserError(
            "Reference images pass the whole network, and this training starts from cached lower blocks: set views=0."
        )
    images = load_dataset(config.reference_images, context.config.data_options).images
    if not len(images):
        raise UserError(f"There are no reference images in {config.reference_images}.")
    stream = Stream(np.arange(len(images)), config.reference_batch, cell.seed + 7_000_003)
    return WithReference(batches, images, stream, context.backbone.preprocessing)


def as_it_starts(context: Context, method: Method) -> dict[str, Tensor]:
    """A copy of what training will change, for rules that come after it; empty where there are none.

    Raises:
        UserError: There is a limit on forgetting that cannot be kept (see `check_limit`).
    """
    config = context.config.retain
    limited = context.config.forgetting.limit is not None
    if limited:
        check_limit(context, method)
    if config.wise_ft == 1 and not limited and not any(isinstance(rule, TpgmConfig) for rule in config.rules):
        return {}
    return {name: tensor.clone() for name, tensor in trained_state(method).items()}


def after_training(
    context: Context, cell: Cell, method: Method, start: dict[str, Tensor], score: Callable[[], float] | None
) -> None:
    """Weight rules that come after a training, in place: TPGM, then WiSE-FT, whose curve over alpha is logged where there are
    validation images; or, with a limit on forgetting, the alpha that keeps within it.

    Args:
        context: Its config has `retain`.
        cell: What was fitted.
        method: Trained.
        start: From `as_it_starts`, before the training.
        score: Of the method as it is now on validation images.
    """
    config = context.config.retain
    for rule in config.rules:
        if isinstance(rule, TpgmConfig):
            _tpgm(context, cell, method, start, rule)
    if context.config.forgetting.limit is not None:
        keep_within(context, cell, method, start, context.config.forgetting.limit)
        return
    if config.wise_ft == 1:
        return
    end = {name: tensor.clone() for name, tensor in trained_state(method).items()}
    if score is not None:
        curve = []
        for alpha in np.linspace(0, 1, 11):
            load_trained_state(method, between(start, end, float(alpha)))
            curve.append(f"{alpha:.1f}: {score():.4f}")
        log.info("%s %s, score on validation images by alpha: %s", cell.method, cell.name, ", ".join(curve))
    load_trained_state(method, between(start, end, config.wise_ft))


def _tpgm(context: Context, cell: Cell, method: Method, start: dict[str, Tensor], config: TpgmConfig) -> None:
    if not len(cell.validation):
        raise UserError(
            "The retention tpgm learns its radii on validation images: keep some with split.validation=0.2."
        )
    encoder = method.encoder
    assert isinstance(encoder, TunedBackbone)
    anchored = [(name, theta, start[f"encoder.backbone.{name}"].to(theta)) for name, theta, _ in anchors(encoder)]
    stream = Stream(cell.validation, min(32, len(cell.validation)), cell.seed)
    device = next(method.parameters()).device

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = processes.mine(stream.batch(step))
        inputs = load_batch(context.dataset.images, chosen, context.backbone.preprocessing).to(device)
        return inputs, context.labels(chosen).to(device)

    shares = learn_radii(method, anchored, batch, config)
    log.info(
        "%s %s: tpgm keeps %.0f %% of the change of weights (median)", cell.method, cell.name, 100 * np.median(shares)
    )
