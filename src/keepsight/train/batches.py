"""Where a training step's data comes from: pure functions of the step, so that resuming needs no data state.

A global batch is cut into `shares` equal parts (processes times accumulated micro-batches); `share` says which one.
"""

from __future__ import annotations

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


def _share(indices: NDArray[np.int64], share: int, shares: int) -> NDArray[np.int64]:
    if len(indices) % shares:
        raise UserError(
            f"A batch of {len(indices)} cannot be cut into {shares} equal shares (processes x accumulated micro-batches): choose "
            f"a batch size that is a multiple of {shares}."
        )
    return indices[share::shares]


class FeatureBatches:
    """Batches of cached features.

    Args:
        x_NF: Features of all images.
        labels_N: Class indices of all images (only those of `labelled` are read).
        labelled: Stream over labelled images.
        unlabelled: Stream over unlabelled images, or None.
    """

    def __init__(self, x_NF: Tensor, labels_N: Tensor, labelled: Stream, unlabelled: Stream | None) -> None:
        self.x_NF, self.labels_N, self.labelled, self.unlabelled = x_NF, labels_N, labelled, unlabelled

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        chosen = torch.from_numpy(_share(self.labelled.batch(step), share, shares))
        if self.unlabelled is None:
            extra = self.x_NF[:0]
        else:
            extra = self.x_NF[torch.from_numpy(_share(self.unlabelled.batch(step), share, shares))]
        return Batch(self.x_NF[chosen], self.labels_N[chosen], extra)


class ImageBatches:
    """Batches of images, decoded and augmented when asked for; the augmentation depends on (seed, step, position) only.

    Args:
        images: All images.
        labels_N: Class indices of all images (only those of `labelled` are read).
        labelled: Stream over labelled images.
        unlabelled: Stream over unlabelled images, or None.
        preprocessing: The backbone's.
        augmentation: Training augmentation, or None.
        seed: Seed of the augmentation.
        views: 0 augments anew at every step; K > 0 gives each image K fixed views, one after the other.
    """

    def __init__(
        self,
        images: ImageList,
        labels_N: NDArray[np.int64],
        labelled: Stream,
        unlabelled: Stream | None,
        preprocessing: Preprocessing,
        augmentation: AugmentConfig | None,
        seed: int,
        views: int = 0,
    ) -> None:
        self.views = views
        self.images, self.labels_N = images, labels_N
        self.labelled, self.unlabelled = labelled, unlabelled
        self.preprocessing, self.augmentation, self.seed = preprocessing, augmentation, seed

    def _load(self, stream: Stream, number: int, step: int, share: int, shares: int) -> Tensor:
        indices = _share(stream.batch(step), share, shares)
        seeds: list[Seed]
        if self.views:
            seeds = view_seeds(self.seed, indices, _share(stream.epochs(step), share, shares) % self.views)
        else:
            # A seed for each position of the global batch: the cut into shares changes no image.
            seeds = [(self.seed, number, step, share + shares * i) for i in range(len(indices))]
        return load_batch(self.images, indices, self.preprocessing, self.augmentation, seeds)

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        inputs = self._load(self.labelled, 0, step, share, shares)
        extra = inputs[:0] if self.unlabelled is None else self._load(self.unlabelled, 1, step, share, shares)
        chosen = _share(self.labelled.batch(step), share, shares)
        return Batch(inputs, torch.from_numpy(self.labels_N[chosen]), extra)


class StateBatches:
    """Batches of states that the frozen lower blocks gave for fixed views of the images.

    Args:
        states: Of all images that the streams visit.
        labels_N: Class indices of all images (only those of `labelled` are read).
        labelled: Stream over labelled images.
        unlabelled: Stream over unlabelled images, or None.
    """

    def __init__(
        self, states: States, labels_N: NDArray[np.int64], labelled: Stream, unlabelled: Stream | None = None
    ) -> None:
        self.states, self.labels_N, self.labelled, self.unlabelled = states, labels_N, labelled, unlabelled

    def _load(self, stream: Stream, step: int, share: int, shares: int) -> Tensor:
        return self.states.read(_share(stream.batch(step), share, shares), _share(stream.epochs(step), share, shares))

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        inputs = self._load(self.labelled, step, share, shares)
        extra = inputs[:0] if self.unlabelled is None else self._load(self.unlabelled, step, share, shares)
        chosen = _share(self.labelled.batch(step), share, shares)
        return Batch(inputs, torch.from_numpy(self.labels_N[chosen]), extra)
