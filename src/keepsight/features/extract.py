"""Images through a frozen backbone into the cache, and features out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import Backbone, ImageList, Pool, Readout, processes
from keepsight.core.progress import Track
from keepsight.data.transforms import AugmentConfig, Seed, load_batch
from keepsight.features.cache import FeatureCache
from keepsight.features.device import this_device

CHUNK = 512
"""Images a cache chunk; a kill loses at most two of them, the one being written and the one being computed."""


class Extractor:
    """Features of one frozen backbone, cached.

    Args:
        backbone: Used in eval mode, without gradients.
        images: The images; indices below refer to them.
        batch_size: Images a forward pass; divides CHUNK, so that a resumed extraction forms the same batches.
        cache: Where features are kept; the user's cache by default.
        view: The features of a fixed augmented view: its number and the augmentation (see `view`); None for the plain image.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: ImageList,
        batch_size: int = 64,
        cache: FeatureCache | None = None,
        view: tuple[int, AugmentConfig] | None = None,
    ) -> None:
        if CHUNK % batch_size:
            raise ValueError(f"batch_size must divide {CHUNK}, got {batch_size}")
        self.backbone, self.images, self.batch_size = backbone, images, batch_size
        about = {"backbone": backbone.name}
        self.cache = cache or FeatureCache(backbone.weights_hash(), backbone.preprocessing, about=about)
        self.extracted = 0
        self._view = view
        self._keys: dict[int, bytes] = {}

    def view(self, number: int, augmentation: AugmentConfig) -> Extractor:
        """The extractor of the fixed augmented view `number` (from 1) of the same images, in the same cache.

        The view is a function of the image's content, the augmentation and the number alone: all seeds, label counts and methods
        share it.
        """
        return Extractor(self.backbone, self.images, self.batch_size, self.cache, (number, augmentation))

    def keys(self, indices: NDArray[np.int64]) -> list[bytes]:
        """Content hashes of the images (of the augmented view, where it is one), computed once."""
        for i in indices.tolist():
            if i not in self._keys:
                key = self.images.content_hash(i)
                if self._view is not None:
                    number, augmentation = self._view
                    key = hashlib.sha256(key + f"{number} {augmentation.model_dump_json()}".encode()).digest()
                self._keys[i] = key
        return [self._keys[i] for i in indices.tolist()]

    def fill(self, indices: NDArray[np.int64], parts: Sequence[tuple[int, Pool]]) -> None:
        """Compute what the cache lacks of these parts for these images, in one pass; every image once.

        Under several processes all must call it, and each computes its share; where they do not share a cache folder (several
        machines), each then computes what it still lacks.
        """
        processes.wait()
        missing = self._missing(indices, parts)
        processes.wait()  # nobody writes before everybody has looked, so that the shares fit together
        numbers = processes.mine(np.arange(len(missing)))
        keys = list(missing)
        self._extract({keys[n]: missing[keys[n]] for n in numbers.tolist()}, parts)
        if processes.count() > 1:
            processes.wait()
            self._extract(self._missing(indices, parts), parts)

    def _missing(self, indices: NDArray[np.int64], parts: Sequence[tuple[int, Pool]]) -> dict[bytes, int]:
        """Key and index of every image that lacks one of the parts."""
        keys = self.keys(indices)
        there_N = np.ones(len(keys), dtype=bool)
        for part in parts:
            store = self.cache.part(*part)
            store.refresh()
            there_N &= store.has(keys)
        missing: dict[bytes, int] = {}
        for place in np.flatnonzero(~there_N).tolist():
            missing.setdefault(keys[place], int(indices[place]))
        return missing

    def _extract(self, missing: dict[bytes, int], parts: Sequence[tuple[int, Pool]]) -> None:
        if not missing:
            return
        keys = list(missing)
        collected: list[list[Tensor]] = [[] for _ in parts]
        end, writing = 0, Future[None]()
        writing.set_result(None)
        with Track("features", len(keys), "images") as track, ThreadPoolExecutor(1) as writer:
            for images in self._batches(list(missing.values())):
                for rows, values in zip(collected, self._read(images, parts), strict=True):
                    rows.append(values)
                end += len(images)
                if end % CHUNK == 0 or end == len(keys):
                    writing.result()  # one chunk at a time waits to be written, while the model goes on
                    whole = [torch.cat(rows) for rows in collected]
                    writing = writer.submit(self._write, keys[(end - 1) // CHUNK * CHUNK : end], parts, whole)
                    collected = [[] for _ in parts]
                track.advance(len(images))
            writing.result()
        self.extracted += len(missing)

    def _write(self, keys: list[bytes], parts: Sequence[tuple[int, Pool]], values: list[Tensor]) -> None:
        for part, values_NF in zip(parts, values, strict=True):
            self.cache.part(*part).add(keys, values_NF.numpy())

    def _read(self, images_BCHW: Tensor, parts: Sequence[tuple[int, Pool]]) -> list[Tensor]:
        """Each part [B, F] of a batch, in halves where the device has not enough memory."""
        blocks = tuple(sorted({block for block, _ in parts}))
        try:
            with torch.inference_mode():
                by_block = dict(zip(blocks, self.backbone(images_BCHW, blocks), strict=True))
                return [by_block[block].pooled(pool).float().cpu() for block, pool in parts]
        except RuntimeError as error:
            if len(images_BCHW) == 1 or not should_reduce_batch_size(error):
                raise
        halves = [self._read(half, parts) for half in images_BCHW.tensor_split(2)]
        return [torch.cat(both) for both in zip(*halves, strict=True)]

    def _batches(self, indices: list[int]) -> Iterator[Tensor]:
        """Preprocessed batches on the backbone's device; the next one is decoded while the current one is used."""
        device = this_device()
        self.backbone.to(device).eval()

        def load(start: int) -> Tensor:
            chosen = indices[start : start + self.batch_size]
            if self._view is None:
                return load_batch(self.images, chosen, self.backbone.preprocessing)
            seeds: list[Seed] = [int.from_bytes(key[:8], "big") for key in self.keys(np.array(chosen, dtype=np.int64))]
            return load_batch(self.images, chosen, self.backbone.preprocessing, self._view[1], seeds)

        if device.type == "cpu":
            for start in range(0, len(indices), self.batch_size):
                yield load(start)
            return
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(load, 0)
            for start in range(0, len(indices), self.batch_size):
                images = following.result()
                if start + self.batch_size < len(indices):
                    following = pool.submit(load, start + self.batch_size)
                yield images.to(device)

    def part(self, indices: NDArray[np.int64], block: int, pool: Pool) -> Tensor:
        """Features [N, F] of one part; what is missing is computed by this process alone."""
        self._extract(self._missing(indices, [(block, pool)]), [(block, pool)])
        return torch.from_numpy(self.cache.part(block, pool).read(self.keys(indices)))

    def features(self, indices: NDArray[np.int64], readout: Readout) -> Tensor:
        """Features [N, F] of a readout; equals `readout.read` of the backbone's output."""
        readout = readout.resolved(self.backbone.depth)
        self._extract(self._missing(indices, readout.parts), readout.parts)
        return torch.cat([self.part(indices, block, pool) for block, pool in readout.parts], dim=1)
