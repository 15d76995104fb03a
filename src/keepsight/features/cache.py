"""The on-disk feature cache: content-addressed, memory-mapped, append-only. Knows no backbone.

A *part* is one (block, pool) of one backbone at one preprocessing. Its folder is named after a hash of the weights and the
preprocessing, and holds chunk files: .npy arrays of (key, vector) records, where the key is the image's sha256. A chunk appears by
renaming, so a killed extraction loses at most the chunk it was computing, and two processes at worst write a chunk twice.
Everything that shares an image and a backbone shares its features: methods, seeds, label counts, data sets, runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepsight.core import Pool, Preprocessing
from keepsight.core.files import atomic_file, cache_directory
from keepsight.core.progress import log

FORMAT = 1
"""Raised when the meaning of stored vectors changes, so that old ones are not read."""


def cache_key(weights_hash: str, preprocessing: Preprocessing) -> str:
    """The identity of a backbone at a preprocessing, 32 hex digits."""
    identity = json.dumps([FORMAT, weights_hash, preprocessing.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


class FeaturePart:
    """All cached vectors of one (block, pool).

    Args:
        folder: Where its chunks lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where: dict[bytes, tuple[int, int]] = {}
        self._chunks: list[NDArray[np.void]] = []
        for path in sorted(folder.glob("*.npy")):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            chunk = np.load(path, mmap_mode="r", allow_pickle=False)
            keys = [key.tobytes() for key in chunk["key"]]
        except (ValueError, OSError, EOFError, IndexError):
            log.warning("cached features %s are damaged and are computed again", path)
            path.unlink(missing_ok=True)
            return
        for row, key in enumerate(keys):
            self._where[key] = (len(self._chunks), row)
        self._chunks.append(chunk)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def add(self, keys: Sequence[bytes], vectors_NF: NDArray[np.float32]) -> None:
        """Write one chunk of float32 vectors [N, F] under N keys of 32 bytes."""
        dtype = np.dtype([("key", "u1", (32,)), ("vector", "<f4", (vectors_NF.shape[1],))])
        chunk = np.empty(len(keys), dtype)
        chunk["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        chunk["vector"] = vectors_NF
        path = self._folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.npy"
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, chunk, allow_pickle=False)
        self._open(path)

    def read(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Vectors [N, F] of N keys, all of which must be there; only their pages are read from disk."""
        places = np.array([self._where[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        width = self._chunks[0]["vector"].shape[1] if self._chunks else 0
        vectors = np.empty((len(keys), width), np.float32)
        for number in np.unique(places[:, 0]):
            rows = np.flatnonzero(places[:, 0] == number)
            vectors[rows] = self._chunks[number]["vector"][places[rows, 1]]
        return vectors


class FeatureCache:
    """The parts of one backbone at one preprocessing.

    Args:
        weights_hash: `Backbone.weights_hash()`.
        preprocessing: The backbone's.
        root: Cache folder; the user's own by default.
    """

    def __init__(self, weights_hash: str, preprocessing: Preprocessing, root: Path | None = None) -> None:
        self.folder = (root or cache_directory() / "features") / cache_key(weights_hash, preprocessing)
        self._parts: dict[tuple[int, Pool], FeaturePart] = {}

    def part(self, block: int, pool: Pool) -> FeaturePart:
        """The part of a block (counted from 1) and a pool."""
        if (block, pool) not in self._parts:
            self._parts[block, pool] = FeaturePart(self.folder / f"block{block:02d}-{pool}")
        return self._parts[block, pool]
