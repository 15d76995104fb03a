"""A small content-style problem: tokens in three clusters with a nuisance, what the tests of the method share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keepsight.data.streams import Stream
from keepsight.heads.content_style import ContentStyleHead
from keepsight.heads.token import make_token
from keepsight.methods.content_style import ContentStyle, ContentStyleConfig
from keepsight.methods.encoder import CachedFeatures
from keepsight.methods.guide import Guide, GuideConfig, compared, make_guide, probe_evidence, unguided
from keepsight.train import FeatureBatches, OptimConfig, TrainConfig

CLASSES = 3
EVERYTHING = ContentStyleConfig(
    hidden=16,
    style=2,
    style_hidden=8,
    decoder_hidden=16,
    critic_hidden=8,
    content_prior=0.1,
    token_prior=0.1,
    neighbours=1.0,
    marginal=1.0,
    consistency=1.0,
)
SGD = TrainConfig(optim=OptimConfig(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.0, clip=None, warmup=0.0))
ADAM = TrainConfig(optim=OptimConfig(lr=5e-3, betas=(0.5, 0.99)), ema=0.9)


def tokens(n: int = 60, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """Tokens [n, 6], two views of them, and the truth [n]: images 0, 1, 2 are of the classes 0, 1, 2, and so on."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) % CLASSES
    centres = 2 * torch.eye(6)[:CLASSES]

    def view() -> Tensor:
        nuisance = torch.randn(n, 1, generator=generator) * torch.eye(6)[4]
        return centres[truth] + nuisance + 0.4 * torch.randn(n, 6, generator=generator)

    x_NF = view()
    return x_NF, [x_NF + 0.3 * torch.randn(n, 6, generator=generator) for _ in range(2)], truth


def problem(
    config: ContentStyleConfig = EVERYTHING,
    labelled: int = 6,
    n: int = 60,
    batch_size: int = 8,
    steps: int = 5,
    with_views: bool = True,
    seed: int = 0,
) -> tuple[ContentStyle, FeatureBatches, Tensor, Tensor]:
    """The method on its tokens, its batches, the tokens and the truth."""
    x_NF, views, truth = tokens(n)
    views = views if with_views else []
    token = make_token(x_NF, views, 6)
    z_ND, z_views = token.z_ND, list(token.views)
    torch.manual_seed(seed)
    head = ContentStyleHead(
        6,
        z_ND.shape[1],
        CLASSES,
        config.hidden,
        config.style if config.decomposes else 0,
        config.style_hidden,
        config.decoder_hidden,
    )
    head.reduction.take(token)
    guide: Guide
    if config.propagated or config.neighbours:
        settings = GuideConfig(k=5)
        evidence = probe_evidence(z_ND, truth[:labelled], CLASSES, seed, settings)
        guide = make_guide(compared(z_ND, z_views), truth[:labelled], CLASSES, evidence, settings)
    else:
        guide = unguided(truth[:labelled], CLASSES)
    method = ContentStyle(CachedFeatures(), head, guide, config, steps, seed)
    hidden = torch.cat([truth[:labelled], torch.full((n - labelled,), -1)])
    batches = FeatureBatches(
        z_ND,
        hidden,
        Stream(np.arange(labelled), batch_size, seed),
        Stream(np.arange(n), 2 * batch_size, seed + 1),
        z_views,
        seed,
    )
    return method, batches, z_ND, truth
