"""Images through a frozen backbone into the cache, and features out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core import Backbone, ImageList, Pool, Readout
from keepsight.core.progress import Track
from keepsight.data.transforms import load_batch
from keepsight.features.cache import FeatureCache

CHUNK = 512
"""Images a cache chunk; a kill loses at most this many."""


class Extractor:
    """Features of one frozen backbone, cached.

    Args:
        backbone: Used in eval mode, without gradients.
        images: The images; indices below refer to them.
        batch_size: Images a forward pass; divides CHUNK, so that a resumed extraction forms the same batches.
        cache: Where features are kept; the user's cache by default.
    """

    def __init__(
        self, backbone: Backbone, images: ImageList, batch_size: int = 64, cache: FeatureCache | None = None
    ) -> None:
        if CHUNK % batch_size:
            raise ValueError(f"batch_size must divide {CHUNK}, got {batch_size}")
        self.backbone, self.images, self.batch_size = backbone, images, batch_size
        self.cache = cache or FeatureCache(backbone.weights_hash(), backbone.preprocessing)
        self.extracted = 0
        self._keys: dict[int, bytes] = {}

    def keys(self, indices: NDArray[np.int64]) -> list[bytes]:
        """Content hashes of the images, computed once."""
        for i in indices.tolist():
            if i not in self._keys:
                self._keys[i] = self.images.content_hash(i)
        return [self._keys[i] for i in indices.tolist()]

    def fill(self, indices: NDArray[np.int64], parts: Sequence[tuple[int, Pool]]) -> None:
        """Compute what the cache lacks of these parts for these images, in one pass; every image once."""
        stores = [self.cache.part(*part) for part in parts]
        missing: dict[bytes, int] = {}
        for index, key in zip(indices.tolist(), self.keys(indices), strict=True):
            if not all(key in store for store in stores):
                missing.setdefault(key, index)
        if not missing:
            return
        self._extract(missing, parts)
        self.extracted += len(missing)

    def _extract(self, missing: dict[bytes, int], parts: Sequence[tuple[int, Pool]]) -> None:
        keys = list(missing)
        blocks = tuple(sorted({block for block, _ in parts}))
        collected: list[list[Tensor]] = [[] for _ in parts]
        end = 0
        with Track("features", len(keys), "images") as track:
            for images in self._batches(list(missing.values())):
                with torch.inference_mode():
                    by_block = dict(zip(blocks, self.backbone(images, blocks), strict=True))
                    for rows, (block, pool) in zip(collected, parts, strict=True):
                        rows.append(by_block[block].pooled(pool).float().cpu())
                end += len(images)
                if end % CHUNK == 0 or end == len(keys):
                    chunk_keys = keys[(end - 1) // CHUNK * CHUNK : end]
                    for rows, part in zip(collected, parts, strict=True):
                        self.cache.part(*part).add(chunk_keys, torch.cat(rows).numpy())
                        rows.clear()
                track.advance(len(images))

    def _batches(self, indices: list[int]) -> Iterator[Tensor]:
        """Preprocessed batches on the backbone's device; the next one is decoded while the current one is used."""
        device = PartialState().device
        self.backbone.to(device).eval()

        def load(start: int) -> Tensor:
            return load_batch(self.images, indices[start : start + self.batch_size], self.backbone.preprocessing)

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(load, 0)
            for start in range(0, len(indices), self.batch_size):
                images = following.result()
                if start + self.batch_size < len(indices):
                    following = pool.submit(load, start + self.batch_size)
                yield images.to(device)

    def part(self, indices: NDArray[np.int64], block: int, pool: Pool) -> Tensor:
        """Features [N, F] of one part."""
        self.fill(indices, [(block, pool)])
        return torch.from_numpy(self.cache.part(block, pool).read(self.keys(indices)))

    def features(self, indices: NDArray[np.int64], readout: Readout) -> Tensor:
        """Features [N, F] of a readout; equals `readout.read` of the backbone's output."""
        readout = readout.resolved(self.backbone.depth)
        self.fill(indices, readout.parts)
        return torch.cat([self.part(indices, block, pool) for block, pool in readout.parts], dim=1)
