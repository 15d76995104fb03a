"""The on-disk feature cache: content-addressed, append-only, safe under several processes. Knows no backbone.

A *part* is one (block, pool) of one backbone at one preprocessing. Its folder is named after a hash of the weights and the
preprocessing, and holds chunk files: .npy arrays of (key, vector) records, where the key is the image's sha256. A chunk appears by
renaming, so a killed extraction loses at most the chunk it was computing, and two processes at worst write a chunk twice: its
name is a hash of its keys, so both write the same file. No chunk is ever changed, and no reader removes a good one.
Everything that shares an image and a backbone shares its features: methods, seeds, label counts, data sets, runs.

Chunks are mapped into memory only while they are read. A map that is kept would hold a file descriptor, of which a process has
1,024, and 70,000 images have 137 chunks in each of some 20 parts. Kept are 40 bytes an image and part: the key and its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tokenize
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepsight.core import Pool, Preprocessing, UserError
from keepsight.core.files import atomic_file, cache_directory, sweep, write_text
from keepsight.core.progress import log
from keepsight.features import lock

FORMAT = 1
"""Raised when the meaning of stored vectors changes, so that old ones are not read."""

LEFTOVER_SECONDS = 24 * 3600.0
"""Age at which a temporary file is one that a killed process left."""

ABOUT = "about.json"
"""What a person wants to know of a cache folder, beside its parts."""

_DAMAGE = (ValueError, EOFError, IndexError, TypeError, OverflowError, SyntaxError, tokenize.TokenError)
"""What numpy raises on the bytes of a damaged chunk."""


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
        self._chunks: list[str] = []  # file names
        self._keys_N = np.empty(0, "S32")  # sorted; all keys are 32 bytes, so that numpy's padding does no harm
        self._places_N2 = np.empty((0, 2), np.int32)  # (chunk, row) of each key
        self._new: list[NDArray[np.bytes_]] = []  # keys of the last chunks, not yet among the sorted ones
        self.refresh()

    def refresh(self) -> None:
        """Take note of the chunks that other processes have written meanwhile."""
        known = set(self._chunks)
        for path in sorted(self._folder.glob("*.npy")):
            if path.name not in known:
                self._open(path)

    def _open(self, path: Path) -> None:
        try:
            seen = path.stat()
            chunk = self._map(path)
            keys = np.ascontiguousarray(chunk["key"])
            if keys.ndim != 2 or keys.shape[1] != 32 or _chunk_name(keys.tobytes()) != path.name:
                raise ValueError("the keys are not those it is named after")
            chunk["vector"]
        except FileNotFoundError:  # somebody removed it
            return
        except _DAMAGE:
            log.warning("cached features %s are damaged and are computed again", path)
            _discard(path, seen)
            return
        except OSError as error:
            raise UserError(
                f"The cached features {path} cannot be read ({error.strerror}): make them readable, or set KEEPSIGHT_CACHE "
                f"to another directory."
            ) from error
        self._chunks.append(path.name)
        self._new.append(keys.view("S32")[:, 0])

    @staticmethod
    def _map(path: Path) -> NDArray[np.void]:
        chunk: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        return chunk

    def _sorted(self) -> NDArray[np.bytes_]:
        """All keys; sorted once for any number of new chunks."""
        if self._new:
            first = len(self._chunks) - len(self._new)
            places = [
                np.stack([np.full(len(keys), first + i), np.arange(len(keys))], axis=1)
                for i, keys in enumerate(self._new)
            ]
            self._keys_N, kept = np.unique(np.concatenate([self._keys_N, *self._new]), return_index=True)
            self._places_N2 = np.concatenate([self._places_N2, *places]).astype(np.int32)[kept]
            self._new = []
        return self._keys_N

    def _find(self, keys: Sequence[bytes]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Position of each key among the sorted ones, and whether it is there."""
        stored = self._sorted()
        wanted = np.frombuffer(b"".join(keys), "S32")
        if not len(stored):
            return np.zeros(len(keys), np.intp), np.zeros(len(keys), np.bool_)
        position = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
        return position, stored[position] == wanted

    def __contains__(self, key: bytes) -> bool:
        return bool(self.has([key])[0])

    def has(self, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Whether each of N keys is there, [N]; for many keys much faster than asking one by one."""
        return self._find(keys)[1]

    def add(self, keys: Sequence[bytes], vectors_NF: NDArray[np.float32]) -> None:
        """Write one chunk of float32 vectors [N, F] under N keys of 32 bytes."""
        dtype = np.dtype([("key", "u1", (32,)), ("vector", "<f4", (vectors_NF.shape[1],))])
        chunk = np.empty(len(keys), dtype)
        joined = b"".join(keys)
        chunk["key"] = np.frombuffer(joined, np.uint8).reshape(-1, 32)
        chunk["vector"] = vectors_NF
        path = self._folder / _chunk_name(joined)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, chunk, allow_pickle=False)
        if path.name not in self._chunks:
            self._chunks.append(path.name)
            self._new.append(np.frombuffer(joined, "S32"))

    def read(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Vectors [N, F] of N keys, all of which must be there (else KeyError); one chunk at a time is mapped into memory.

        Raises:
            UserError: if somebody removed the files meanwhile.
        """
        position, there = self._find(keys)
        if not there.all():
            raise KeyError(keys[int(np.flatnonzero(~there)[0])].hex())
        if not len(keys):
            width = self._map_again(self._folder / self._chunks[0])["vector"].shape[1] if self._chunks else 0
            return np.empty((0, width), np.float32)
        places = self._places_N2[position]
        order = np.argsort(places[:, 0], kind="stable")
        numbers, starts = np.unique(places[order, 0], return_index=True)
        vectors = np.empty((0, 0), np.float32)
        for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            chunk = self._map_again(self._folder / self._chunks[number])
            if not vectors.size:
                vectors = np.empty((len(keys), chunk["vector"].shape[1]), np.float32)
            vectors[rows] = chunk["vector"][places[rows, 1]]
        return vectors

    def _map_again(self, path: Path) -> NDArray[np.void]:
        try:
            return self._map(path)
        except (*_DAMAGE, OSError) as error:
            raise UserError(
                f"The cached features {path} were removed or damaged while they were in use: start again, and what is missing "
                f"is computed again."
            ) from error


class FeatureCache:
    """The parts of one backbone at one preprocessing. While the object lives, `prune_cache` leaves its folder alone.

    Args:
        weights_hash: `Backbone.weights_hash()`.
        preprocessing: The backbone's.
        root: Cache folder; the user's own by default.
        about: What `keepsight cache` shows of it, such as {"backbone": "vit_s14"}; the size is added.
    """

    def __init__(
        self,
        weights_hash: str,
        preprocessing: Preprocessing,
        root: Path | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = (root or cache_directory() / "features") / cache_key(weights_hash, preprocessing)
        self._parts: dict[tuple[int, Pool], FeaturePart] = {}
        if (handle := lock.use(self.folder)) is not None:
            weakref.finalize(self, os.close, handle)
            sweep(self.folder, older_than=LEFTOVER_SECONDS)
        if about is not None:
            self._describe({**about, "size": str(preprocessing.size)})

    def _describe(self, about: Mapping[str, str]) -> None:
        path, text = self.folder / ABOUT, json.dumps(about, indent=1)
        # For people only: where it cannot be written, the first chunk will say so.
        with contextlib.suppress(OSError, UserError, ValueError):
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)

    def part(self, block: int, pool: Pool) -> FeaturePart:
        """The part of a block (counted from 1) and a pool."""
        if (block, pool) not in self._parts:
            self._parts[block, pool] = FeaturePart(self.folder / f"block{block:02d}-{pool}")
        return self._parts[block, pool]

    def refresh(self) -> None:
        """Take note of what other processes have written meanwhile, in the parts that were asked for."""
        for part in self._parts.values():
            part.refresh()


def _chunk_name(keys: bytes) -> str:
    return f"{hashlib.sha256(keys).hexdigest()[:32]}.npy"


def _discard(path: Path, seen: os.stat_result) -> None:
    """Remove a damaged chunk, but not a good one that another process has put in its place meanwhile."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # another process was faster, or the cache is only readable
        path.rename(aside)
        moved = aside.stat()
        if (moved.st_ino, moved.st_mtime_ns, moved.st_size) == (seen.st_ino, seen.st_mtime_ns, seen.st_size):
            aside.unlink()
        else:
            aside.rename(path)
