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
from keepsight.data.transforms import AugmentConfig, load_batch


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
    ) -> None:
        self.images, self.labels_N = images, labels_N
        self.labelled, self.unlabelled = labelled, unlabelled
        self.preprocessing, self.augmentation, self.seed = preprocessing, augmentation, seed

    def _load(self, indices: NDArray[np.int64], step: int, stream: int, share: int, shares: int) -> Tensor:
        # A seed for each position of the global batch: the cut into shares changes no image.
        seeds = [(self.seed, stream, step, share + shares * i) for i in range(len(indices))]
        return load_batch(self.images, indices, self.preprocessing, self.augmentation, seeds)

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        chosen = _share(self.labelled.batch(step), share, shares)
        inputs = self._load(chosen, step, 0, share, shares)
        if self.unlabelled is None:
            extra = inputs[:0]
        else:
            extra = self._load(_share(self.unlabelled.batch(step), share, shares), step, 1, share, shares)
        return Batch(inputs, torch.from_numpy(self.labels_N[chosen]), extra)
