"""States of images within a backbone, computed once and kept on disk for one training: what the frozen lower blocks give.

With K fixed augmented views of every image, the blocks below the first trained one run K times an image, and not once a step.
Knows no method.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keepsight.backbones.cut import prefix
from keepsight.core import Backbone, ImageList, processes
from keepsight.core.files import atomic_file, make_directory
from keepsight.core.progress import Track
from keepsight.data.transforms import AugmentConfig, load_batch, view_seeds
from keepsight.features.device import this_device

BATCH = 64


class States:
    """States [n * views, ...] after `block` blocks, float32, memory-mapped; every process computes its share.

    Args:
        folder: Where the files go; complete ones of an earlier start are used again. All processes must see it.
        backbone: Frozen below `block`; in eval mode meanwhile.
        block: Blocks that are run (see `backbones.cut.prefix`).
        images: The images.
        indices: [n] those whose states are wanted.
        augmentation: Of the views; None for the plain image (then `views` is 1).
        views: Fixed views of each image.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        block: int,
        images: ImageList,
        indices: NDArray[np.int64],
        augmentation: AugmentConfig | None,
        views: int,
        seed: int,
    ) -> None:
        self._views, self._place = views, {int(i): n for n, i in enumerate(indices.tolist())}
        self._count = processes.count()
        files = [folder / f"states-{number}-of-{self._count}.npy" for number in range(self._count)]
        make_directory(folder)
        if not files[processes.index()].is_file():
            rows = processes.mine(np.arange(len(indices) * views))
            chosen, view = indices[rows // views], rows % views
            _compute(files[processes.index()], backbone, block, images, chosen, augmentation, view, seed)
        processes.wait()
        self._files = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]

    def read(self, indices: NDArray[np.int64], epochs: NDArray[np.int64]) -> Tensor:
        """States [B, ...] of B images; the view is the epoch modulo the number of views."""
        rows = np.array([self._place[int(i)] for i in indices]) * self._views + epochs % self._views
        return torch.from_numpy(np.stack([self._files[row % self._count][row // self._count] for row in rows.tolist()]))


def _compute(
    file: Path,
    backbone: Backbone,
    block: int,
    images: ImageList,
    indices: NDArray[np.int64],
    augmentation: AugmentConfig | None,
    views: NDArray[np.int64],
    seed: int,
) -> None:
    device = this_device()
    backbone.to(device).eval()
    out: np.memmap[tuple[int, ...], np.dtype[np.float32]] | None = None
    with atomic_file(file) as temporary, Track("frozen blocks", len(indices), "images") as track:
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH]
            seeds = None if augmentation is None else view_seeds(seed, chosen, views[start : start + BATCH])
            batch = load_batch(images, chosen, backbone.preprocessing, augmentation, seeds).to(device)
            with torch.inference_mode():
                states = prefix(backbone, batch, block).float().cpu().numpy()
            if out is None:
                out = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(indices), *states.shape[1:]))
            out[start : start + BATCH] = states
            track.advance(len(chosen))
        if out is None:
            np.save(temporary.open("wb"), np.empty((0,), np.float32))
        else:
            out.flush()
