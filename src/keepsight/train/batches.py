"""Where a training step's data comes from: pure functions of the step, so that resuming needs no data state.

A global batch is cut into `shares` equal parts (processes times accumulated micro-batches); `share` says which one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import Batch, ImageList, Preprocessing, UserError
from keepsight.data.streams import Stream
from keepsight.data.transforms import AugmentConfig, Seed, load_batch, view_seeds
from keepsight.features.states import States


class BatchSource(Protocol):
    """Gives the batch of a step."""

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """Share `share` (of `shares`) of the global batch of `step`."""
        ...


def share_of(indices: NDArray[np.int64], share: int, shares: int) -> NDArray[np.int64]:
    """Every `shares`-th item from `share` on; raises UserError where they cannot be equal."""
    if len(indices) % shares:
        raise UserError(
            f"A batch of {len(indices)} cannot be cut into {shares} equal shares (processes x accumulated micro-batches): choose "
            f"a batch size that is a multiple of {shares}."
        )
    return indices[share::shares]


class FeatureBatches:
    """Batches of cached features. Where there are augmented views, labelled images come in any of the views, the plain one
    included; unlabelled ones come plain, and their `strong` version in any of the augmented views.

    Args:
        x_NF: Features of all images.
        labels_N: Class indices of all images (only those of `labelled` are read).
        labelled: Stream over labelled images (rows of x_NF).
        unlabelled: Stream over unlabelled images (rows of x_NF), or None.
        views: Features [N, F] of V augmented views of the same images, each.
        seed: Of the choice of views, which is a function of (seed, step).
    """

    def __init__(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        labelled: Stream,
        unlabelled: Stream | None,
        views: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> None:
        self.x_VNF = torch.stack([x_NF, *views])
        self.labels_N, self.labelled, self.unlabelled, self.seed = labels_N, labelled, unlabelled, seed

    def _view(self, stream: Stream, number: int, step: int, share: int, shares: int, first: int) -> Tensor:
        """A random view, counted from `first`, of each of the stream's images at this step."""
        rows = stream.batch(step)
        views = np.random.default_rng((self.seed, number, step)).integers(first, len(self.x_VNF), len(rows))
        return self.x_VNF[
            torch.from_numpy(share_of(views, share, shares)), torch.from_numpy(share_of(rows, share, shares))
        ]

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        labels = self.labels_N[torch.from_numpy(share_of(self.labelled.batch(step), share, shares))]
        inputs = self._view(self.labelled, 0, step, share, shares, first=0)
        if self.unlabelled is None:
            return Batch(inputs, labels, inputs[:0])
        rows = torch.from_numpy(share_of(self.unlabelled.batch(step), share, shares))
        if len(self.x_VNF) == 1:
            return Batch(inputs, labels, self.x_VNF[0, rows], rows=rows)
        strong = self._view(self.unlabelled, 1, step, share, shares, first=1)
        return Batch(inputs, labels, self.x_VNF[0, rows], strong, rows)


class ImageBatches:
    """Batches of images, decoded and augmented when asked for; the augmentation depends on (seed, step, position) only.

    Args:
        images: All images.
        labels_N: Class indices (or targets [N, K]) of all images; only those of `labelled` are read.
        labelled: Stream over labelled images.
        unlabelled: Stream over unlabelled images, or None.
        preprocessing: The backbone's.
        augmentation: Training augmentation, or None.
        seed: Seed of the augmentation.
        views: 0 augments anew at every step; K > 0 gives each image K fixed views, one after the other.
        strong: Augmentation of a second view of the unlabelled images (`Batch.strong`); with it their first one is plain.
    """

    def __init__(
        self,
        images: ImageList,
        labels_N: NDArray[np.int64] | NDArray[np.int8],
        labelled: Stream,
        unlabelled: Stream | None,
        preprocessing: Preprocessing,
        augmentation: AugmentConfig | None,
        seed: int,
        views: int = 0,
        strong: AugmentConfig | None = None,
    ) -> None:
        self.views = views
        self.images, self.labels_N = images, labels_N
        self.labelled, self.unlabelled = labelled, unlabelled
        self.preprocessing, self.augmentation, self.seed = preprocessing, augmentation, seed
        self.strong = strong

    def _load(
        self, stream: Stream, number: int, step: int, share: int, shares: int, augmentation: AugmentConfig | None
    ) -> Tensor:
        indices = share_of(stream.batch(step), share, shares)
        seeds: list[Seed]
        if self.views:
            seeds = view_seeds(self.seed, indices, share_of(stream.epochs(step), share, shares) % self.views)
        else:
            # A seed for each position of the global batch: the cut into shares changes no image.
            seeds = [(self.seed, number, step, share + shares * i) for i in range(len(indices))]
        return load_batch(self.images, indices, self.preprocessing, augmentation, seeds)

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`; `rows` are indices of images."""
        inputs = self._load(self.labelled, 0, step, share, shares, self.augmentation)
        labels = torch.from_numpy(self.labels_N[share_of(self.labelled.batch(step), share, shares)])
        if self.unlabelled is None:
            return Batch(inputs, labels, inputs[:0])
        rows = torch.from_numpy(share_of(self.unlabelled.batch(step), share, shares))
        if self.strong is None:
            extra = self._load(self.unlabelled, 1, step, share, shares, self.augmentation)
            return Batch(inputs, labels, extra, rows=rows)
        plain = self._load(self.unlabelled, 1, step, share, shares, None)
        strong = self._load(self.unlabelled, 2, step, share, shares, self.strong)
        return Batch(inputs, labels, plain, strong, rows)


class StateBatches:
    """Batches of states that the frozen lower blocks gave for fixed views of the images.

    Args:
        states: Of all images that the streams visit.
        labels_N: Class indices (or targets [N, K]) of all images; only those of `labelled` are read.
        labelled: Stream over labelled images.
        unlabelled: Stream over unlabelled images, or None.
    """

    def __init__(
        self,
        states: States,
        labels_N: NDArray[np.int64] | NDArray[np.int8],
        labelled: Stream,
        unlabelled: Stream | None = None,
    ) -> None:
        self.states, self.labels_N, self.labelled, self.unlabelled = states, labels_N, labelled, unlabelled

    def _load(self, stream: Stream, step: int, share: int, shares: int) -> Tensor:
        return self.states.read(
            share_of(stream.batch(step), share, shares), share_of(stream.epochs(step), share, shares)
        )

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        inputs = self._load(self.labelled, step, share, shares)
        extra = inputs[:0] if self.unlabelled is None else self._load(self.unlabelled, step, share, shares)
        chosen = share_of(self.labelled.batch(step), share, shares)
        return Batch(inputs, torch.from_numpy(self.labels_N[chosen]), extra)


class WithReference:
    """The batches of another source, with reference images beside them: plain ones, a function of the step alone.

    Args:
        batches: The other source.
        images: Of any content.
        stream: Over them.
        preprocessing: The backbone's.
    """

    def __init__(self, batches: BatchSource, images: ImageList, stream: Stream, preprocessing: Preprocessing) -> None:
        self.batches, self.images, self.stream, self.preprocessing = batches, images, stream, preprocessing

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        chosen = share_of(self.stream.batch(step), share, shares)
        return replace(self.batches(step, share, shares), reference=load_batch(self.images, chosen, self.preprocessing))
