"""Maps of scenes by a frozen backbone, computed once and kept on disk for one run. Knows no task head.

A map [C, h, w] is what `core.features.feature_map` makes of the chosen blocks, in float16: 0.3 MiB an image for three blocks of a
ViT-S at 168 px.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import Backbone, SceneDataset, Target, processes
from keepsight.core.features import feature_map
from keepsight.core.files import atomic_file, make_directory
from keepsight.core.progress import Track
from keepsight.data.scene_transforms import SceneAugmentConfig, Words, load_scene_batch
from keepsight.data.transforms import Seed
from keepsight.features.device import this_device

BATCH = 32


class SceneMaps:
    """Maps [views, n, C, h, w] of n images, memory-mapped, and what is to be learnt of each; every process computes its share.

    View 0 is the plain image. Every other is augmented once, as the image's index and the view's number say.

    Args:
        folder: Where the file goes; a complete one of an earlier start is used again. All processes must see it.
        backbone: Frozen; in eval mode meanwhile.
        blocks: Of the map, in this order.
        dataset: The scenes.
        indices: [n] those that are wanted.
        augmented: Number of augmented views.
        augmentation: Of those.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        blocks: tuple[int, ...],
        dataset: SceneDataset,
        indices: NDArray[np.int64],
        augmented: int = 0,
        augmentation: SceneAugmentConfig | None = None,
    ) -> None:
        self.views = 1 + augmented
        self._dataset, self._preprocessing = dataset, backbone.preprocessing
        self._augmentation = SceneAugmentConfig() if augmentation is None else augmentation
        self._place = {int(i): n for n, i in enumerate(indices.tolist())}
        self._indices, self._count = indices, processes.count()
        self._targets: dict[tuple[int, int, bool], Target] = {}
        make_directory(folder)
        self._files: list[list[NDArray[np.float16]]] = []
        for view in range(self.views):
            name = _name(backbone, blocks, dataset, indices, self._augmentation if view else None)
            files = [folder / f"maps-{name}-{view}-{number}-of-{self._count}.npy" for number in range(self._count)]
            if not files[processes.index()].is_file():
                load = partial(self._images, view)
                write_maps(files[processes.index()], backbone, blocks, processes.mine(indices), load)
            processes.wait()
            self._files.append([np.load(file, mmap_mode="r", allow_pickle=False) for file in files])

    @property
    def channels(self) -> int:
        """C."""
        return int(self._files[0][0].shape[1])

    def _loaded(self, view: int, indices: Sequence[int], masks: bool) -> tuple[Tensor, tuple[Target, ...]]:
        augmentation = self._augmentation if view else None
        seeds: list[Seed] = [(view, int(i)) for i in indices]
        return load_scene_batch(
            self._dataset, indices, self._preprocessing, augmentation, seeds if view else None, masks
        )

    def _images(self, view: int, indices: Sequence[int]) -> Tensor:
        return self._loaded(view, indices, False)[0]

    def read(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """Maps [B, C, h, w], float32, of B images in these views."""
        places = [(self._place[int(i)], int(v)) for i, v in zip(indices, views, strict=True)]
        maps = [self._files[v][p % self._count][p // self._count] for p, v in places]
        return torch.from_numpy(np.stack(maps).astype(np.float32))

    def targets(
        self, indices: NDArray[np.int64], views: NDArray[np.int64], masks: bool, words: Words | None
    ) -> tuple[Target, ...]:
        """What is to be learnt of B images in these views; boxes and masks are kept in memory once they were made."""
        keys = [(int(i), int(v), masks) for i, v in zip(indices, views, strict=True)]
        for view in range(self.views):
            missing = list(dict.fromkeys(i for i, v, _ in keys if v == view and (i, v, masks) not in self._targets))
            if missing:
                made = self._loaded(view, missing, masks)[1]
                self._targets |= {(i, view, masks): target for i, target in zip(missing, made, strict=True)}
        found = [self._targets[key] for key in keys]
        if words is None:
            return tuple(found)
        said = [words(self._dataset.captions[i]) for i, _, _ in keys]
        return tuple(Target(t.boxes, t.classes, t.masks, w) for t, w in zip(found, said, strict=True))


def _name(
    backbone: Backbone,
    blocks: tuple[int, ...],
    dataset: SceneDataset,
    indices: NDArray[np.int64],
    augmentation: SceneAugmentConfig | None,
) -> str:
    """A hash of everything that the maps of a view depend on, but for its number."""
    found = hashlib.sha256(backbone.weights_hash().encode())
    found.update(f"{backbone.preprocessing.model_dump_json()} {blocks}".encode())
    if augmentation is not None:
        found.update(f"{augmentation.model_dump_json()} {indices.tolist()}".encode())
    for i in indices.tolist():
        found.update(dataset.images.content_hash(i))
    return found.hexdigest()[:16]


def write_maps(
    file: Path,
    backbone: Backbone,
    blocks: tuple[int, ...],
    indices: NDArray[np.int64],
    load: Callable[[Sequence[int]], Tensor],
) -> None:
    """Write maps [n, C, h, w], float16, of n images in batches of `BATCH`; the file is there when it is whole.

    Args:
        file: Where to (.npy).
        backbone: Frozen; in eval mode afterwards.
        blocks: Of the map, counted from 1.
        indices: [n] what `load` is asked for, in this order.
        load: Network inputs [B, 3, S, S] of some of the indices.
    """
    device = this_device()
    backbone.to(device).eval()
    out: np.memmap[tuple[int, ...], np.dtype[np.float16]] | None = None
    with atomic_file(file) as temporary, Track("maps", len(indices), "images") as track:
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH].tolist()
            images = load(chosen).to(device)
            with torch.inference_mode():
                maps = feature_map(backbone(images, blocks)).half().cpu().numpy()
            if out is None:
                out = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(indices), *maps.shape[1:]))
            out[start : start + BATCH] = maps
            track.advance(len(chosen))
        if out is None:
            np.save(temporary.open("wb"), np.empty((0, 0, 0, 0), np.float16))
        else:
            out.flush()
