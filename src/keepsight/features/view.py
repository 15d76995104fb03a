"""What a frozen backbone makes of a probe's images (`core.View`), computed once and kept on disk. Knows no probe.

Everything is computed for all images in their own order, in batches of one size, whatever is asked first: the same backbone
gives the same tensors bit for bit. Vectors lie in a `FeatureCache`; maps in files of half precision, memory-mapped, each named
after a hash of all that it depends on, so that a killed computation goes on at the file that it was writing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from keepsight.backbones.open_clip_models import OpenClipBackbone
from keepsight.core import Backbone, ImageList, Pool, Readout, TextTower, View
from keepsight.core.probe import Rows
from keepsight.data.transforms import load_batch
from keepsight.features.cache import FeatureCache
from keepsight.features.device import this_device
from keepsight.features.extract import Extractor
from keepsight.features.maps import write_maps

CHUNK = 256
"""Images a file of maps; a kill loses the one that was being written."""

PROJECTED = 1024
"""Vectors that are projected at a time."""

ATTENDED = 16
"""Images a pass for attention, which is large."""


@final
class BackboneView(View):
    """One backbone's view of some images.

    Args:
        backbone: Frozen; in eval mode meanwhile. Its preprocessing holds.
        images: The probe's.
        folder: Where maps go; what an earlier start left there is used again.
        text: The text tower that belongs to the backbone.
        cache: Where vectors are kept; the user's own cache by default.

    Raises:
        UserError: An image cannot be read, when it is asked for.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: ImageList,
        folder: Path,
        text: TextTower | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.depth, self.text = backbone.depth, text
        self._backbone, self._images, self._folder = backbone, images, folder
        self._extractor = Extractor(backbone, images, cache=cache)
        self._every: Rows = np.arange(len(images), dtype=np.int64)
        self._weights = backbone.weights_hash()
        self._maps: dict[tuple[int, ...], list[NDArray[np.float16]]] = {}
        self._embeddings: Tensor | None = None
        self._filled: set[tuple[int, Pool]] = set()

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        """See `View.vectors`."""
        readout = readout.resolved(self.depth)
        if not self._filled.issuperset(readout.parts):
            self._extractor.fill(self._every, readout.parts)
            self._filled.update(readout.parts)
        return self._extractor.features(rows, readout)

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        """See `View.maps`."""
        resolved = Readout(blocks=blocks, pools=("mean",)).resolved(self.depth).blocks
        if resolved not in self._maps:
            self._maps[resolved] = [self._file(chunk, resolved) for chunk in self._chunks()]
        files = self._maps[resolved]
        if not len(rows):
            return torch.empty(0, *files[0].shape[1:])
        found_BChw = np.stack([files[int(row) // CHUNK][int(row) % CHUNK] for row in rows])
        return torch.from_numpy(found_BChw.astype(np.float32))

    def embeddings(self, rows: Rows) -> Tensor:
        """See `View.embeddings`; ValueError where the backbone is no image tower of open_clip."""
        if not isinstance(self._backbone, OpenClipBackbone):
            raise ValueError(f"{self._backbone.name} has no space that it shares with texts")
        if self._embeddings is None:
            cls_NC = self.vectors(self._every, Readout(blocks=(self.depth,), pools=("cls",)))
            device = this_device()
            self._backbone.to(device).eval()
            with torch.inference_mode():
                parts = [self._backbone.project(some.to(device)) for some in torch.split(cls_NC, PROJECTED)]
                found_NE = torch.cat([F.normalize(part.float(), dim=1).cpu() for part in parts])
            self._embeddings = found_NE.clone()  # out of inference mode, so that heads can be trained on it
        return self._embeddings[torch.from_numpy(np.asarray(rows))]

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        """See `View.attention`; not kept."""
        from keepsight.features.attention import attention

        resolved = Readout(blocks=blocks, pools=("mean",)).resolved(self.depth).blocks
        device = this_device()
        self._backbone.to(device).eval()
        parts = []
        for start in range(0, len(rows), ATTENDED):
            batch = load_batch(self._images, rows[start : start + ATTENDED], self._backbone.preprocessing)
            parts.append(attention(self._backbone, batch.to(device), resolved).float().cpu())
        return torch.cat(parts)

    def _chunks(self) -> list[Rows]:
        return [self._every[start : start + CHUNK] for start in range(0, len(self._every), CHUNK)]

    def _file(self, chunk: Rows, blocks: tuple[int, ...]) -> NDArray[np.float16]:
        """The maps of a chunk, computed if they are not there."""
        found = hashlib.sha256(self._weights.encode())
        found.update(f"{self._backbone.preprocessing.model_dump_json()} {blocks}".encode())
        found.update(b"".join(self._extractor.keys(chunk)))
        file = self._folder / f"maps-{found.hexdigest()[:24]}.npy"
        if not file.is_file():
            write_maps(file, self._backbone, blocks, chunk, self._load)
        maps: NDArray[np.float16] = np.load(file, mmap_mode="r", allow_pickle=False)
        return maps

    def _load(self, rows: Sequence[int]) -> Tensor:
        return load_batch(self._images, rows, self._backbone.preprocessing)
