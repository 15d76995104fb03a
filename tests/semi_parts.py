"""Features in clusters, as easy or hard as a test wants: what the tests of semi-supervised methods share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from keepsight.data.streams import Stream
from keepsight.heads.reduction import Reduction
from keepsight.methods.encoder import CachedFeatures
from keepsight.methods.fixmatch import FixMatch, FixMatchConfig
from keepsight.train import FeatureBatches


def clusters(
    rows: int, classes: int = 3, spread: float = 1.0, seed: int = 0, shares: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Features [N, 8] and labels [N]: stretched normal clusters around fixed means; `shares` repeats classes unevenly.

    The stretch lies along directions that tell no classes apart, so that few labels alone are misled by it.
    """
    generator = torch.Generator().manual_seed(seed)
    pattern = (
        torch.arange(classes)
        if shares is None
        else torch.repeat_interleave(torch.arange(classes), torch.tensor(shares))
    )
    labels = pattern.repeat(rows // len(pattern) + 1)[:rows]
    means = torch.zeros(classes, 8)
    means[torch.arange(classes), torch.arange(classes)] = 4.0
    scale = torch.tensor([1.0] * 4 + [4.0] * 4)
    return means[labels] + spread * scale * torch.randn(rows, 8, generator=generator), labels


def views_of(x_NF: Tensor, count: int, seed: int = 1) -> list[Tensor]:
    """Features of `count` views that differ along the stretch only."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.1] * 4 + [4.0] * 4)
    return [x_NF + scale * torch.randn(x_NF.shape, generator=generator) for _ in range(count)]


def first_of_each(labels_N: Tensor, count: int, classes: int = 3) -> Tensor:
    """An order of all rows that begins with the first `count` of each class."""
    first = torch.cat([(labels_N == k).nonzero()[:count, 0] for k in range(classes)])
    rest = torch.ones(len(labels_N), dtype=torch.bool)
    rest[first] = False
    return torch.cat([first, rest.nonzero()[:, 0]])


def fixmatch(config: FixMatchConfig | None = None, labels_L: Tensor | None = None) -> FixMatch:
    """On tokens of length 8 and three classes; by default every pseudo-label counts, with noise and dropout."""
    config = config or FixMatchConfig(hidden=8, threshold=0.0, warmup=2)
    labels_L = torch.tensor([0, 1, 2]) if labels_L is None else labels_L
    return FixMatch(CachedFeatures(), Reduction(8, 8), labels_L, 3, config, seed=0)


def fixmatch_batches(
    x_NF: Tensor | None = None, labels_L: Tensor | None = None, views: Sequence[Tensor] | None = None
) -> FeatureBatches:
    """Batches of 8 and 16 of these tokens, labelled ones first; by default of 30 in clusters, the first 9 labelled."""
    if x_NF is None or labels_L is None:
        x_NF, labels_N = clusters(30)
        x_NF, labels_L = x_NF / 4, labels_N[:9]
    views = views_of(x_NF, 2) if views is None else views
    labels_N = torch.cat([labels_L, torch.full((len(x_NF) - len(labels_L),), -1)])
    labelled, unlabelled = Stream(np.arange(len(labels_L)), 8, seed=0), Stream(np.arange(len(x_NF)), 16, seed=1)
    return FeatureBatches(x_NF, labels_N, labelled, unlabelled, views)
