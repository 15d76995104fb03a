"""Lists and prunes the cache: features of backbones, composed scenes, what probes found, and converted assets. Computes nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from keepsight.core import Config, UserError
from keepsight.core.files import cache_directory, sweep
from keepsight.core.progress import log
from keepsight.features import lock
from keepsight.features.cache import ABOUT, LEFTOVER_SECONDS


class CacheEntry(Config):
    """One folder of features, of composed scenes or of a probe's findings, or one converted asset.

    Attributes:
        kind: ``features`` (of one backbone at one preprocessing), ``scenes``, ``probe`` (what one found of a backbone) or ``asset``
            (converted weights or images).
        path: The folder or file.
        name: The backbone's or asset's name; "" for features written without one.
        size: Side of the backbone's input, px, where known.
        images: Rows of its largest part: the number of images, unless two processes computed some twice; of scenes their number.
        parts: Blocks and pools, such as "block08-cls".
        bytes: Size on disk.
        last_used: When it was last opened or written, UTC.
        in_use: Whether some process uses it now; of scenes whether one was begun with them within a day, since they hold no lock.
    """

    kind: Literal["features", "scenes", "probe", "asset"]
    path: Path
    name: str
    size: int | None = None
    images: int = 0
    parts: tuple[str, ...] = ()
    bytes: int
    last_used: datetime
    in_use: bool = False


def list_cache(root: Path | None = None) -> list[CacheEntry]:
    """Everything in the cache, the most recently used first; files that another process removes meanwhile are left out.

    Args:
        root: The cache, which holds ``features``, ``scenes``, ``probes`` and ``assets``; the user's own by default.
    """
    root = root or cache_directory()
    made = [*_features(root / "features"), *_scenes(root / "scenes"), *_probes(root / "probes")]
    entries = [*made, *_assets(root / "assets")]
    return sorted(entries, key=lambda entry: entry.last_used, reverse=True)


def prune_cache(
    root: Path | None = None,
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> list[CacheEntry]:
    """Remove what can be computed again and was not used for long, or the least recently used until the cache is small enough.

    What a process uses now is left alone and said. Assets (which had to be downloaded) go with `everything` only. What killed
    processes left is removed too, once it is a day old.

    Args:
        root: The cache; the user's own by default.
        older_than_days: Remove what was last used before so many days.
        max_bytes: Remove the least recently used first, until the whole cache is at most so large.
        everything: Remove all, assets too.
        dry_run: Remove nothing, only say what would go.

    Returns:
        What was removed, or would be.

    Raises:
        UserError: if no rule is given, or something cannot be removed.
    """
    if older_than_days is None and max_bytes is None and not everything:
        raise UserError("Nothing says what to prune: give an age in days, a size to keep, or everything.")
    root = root or cache_directory()
    entries = list_cache(root)
    chosen = list(_chosen(entries, older_than_days, max_bytes, everything))
    if dry_run:
        return chosen
    with contextlib.suppress(OSError):
        sweep(root, older_than=LEFTOVER_SECONDS)
    return [entry for entry in chosen if _remove(entry)]


def _chosen(
    entries: list[CacheEntry], older_than_days: float | None, max_bytes: int | None, everything: bool
) -> Iterator[CacheEntry]:
    """The least recently used first."""
    left = sum(entry.bytes for entry in entries)
    oldest = time.time() - older_than_days * 86400 if older_than_days is not None else 0.0
    for entry in sorted(entries, key=lambda entry: entry.last_used):
        too_old = entry.last_used.timestamp() < oldest
        too_much = max_bytes is not None and left > max_bytes
        if everything or (entry.kind != "asset" and (too_old or too_much)):
            if entry.in_use:
                log.warning("%s is in use and stays.", entry.path)
                continue
            left -= entry.bytes
            yield entry


def _remove(entry: CacheEntry) -> bool:
    """Whether it was removed: no, if somebody took it into use meanwhile."""
    try:
        if entry.kind == "asset":
            entry.path.unlink(missing_ok=True)
            return True
        aside = entry.path.with_name(f".{entry.path.name}.tmp")
        with lock.sole_use(entry.path) as alone:
            if not alone:
                log.warning("%s is in use and stays.", entry.path)
                return False
            # Out of the way in one step: a kill in the middle leaves a leftover, not half a cache, and nobody waits for long.
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                entry.path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return True
    except OSError as error:
        raise UserError(f"{entry.path} cannot be removed ({error.strerror}): check its permissions.") from error


def _features(folder: Path) -> Iterator[CacheEntry]:
    for path in _visible(folder):
        if not path.is_dir():
            continue
        parts = [part for part in _visible(path) if part.is_dir()]
        chunks = {part.name: list(part.glob("*.npy")) for part in parts}
        about = _about(path / ABOUT)
        size = about.get("size", "")
        yield CacheEntry(
            kind="features",
            path=path,
            name=about.get("backbone", ""),
            size=int(size) if size.isdecimal() else None,
            images=max((sum(map(_rows, files)) for files in chunks.values()), default=0),
            parts=tuple(chunks),
            bytes=_bytes(file for file in path.rglob("*") if file.is_file()),
            last_used=_last([lock.lock_file(path), path, *parts]),
            in_use=lock.in_use(path),
        )


def _scenes(folder: Path) -> Iterator[CacheEntry]:
    for path in _visible(folder):
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
            last_used = _last([path])
            yield CacheEntry(
                kind="scenes",
                path=path,
                name=path.name,
                images=sum(file.suffix in (".jpg", ".png") for file in files),
                bytes=_bytes(files),
                last_used=last_used,
                in_use=time.time() - last_used.timestamp() < LEFTOVER_SECONDS,
            )


def _probes(folder: Path) -> Iterator[CacheEntry]:
    for path in _visible(folder):
        if path.is_dir():  # "ocr-" and a hash
            size = _bytes(file for file in path.rglob("*") if file.is_file())
            yield CacheEntry(
                kind="probe", path=path, name=path.name.rpartition("-")[0], bytes=size, last_used=_last([path])
            )


def _assets(folder: Path) -> Iterator[CacheEntry]:
    for path in _visible(folder):
        if path.is_file():
            # "mnist_5k-846f6cad587fea38-r1.npz": the name, a hash, the reader's version.
            name = path.stem.rsplit("-", 2)[0]
            yield CacheEntry(kind="asset", path=path, name=name, bytes=_bytes([path]), last_used=_last([path]))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"The cache {folder} cannot be read ({error.strerror}): make it readable.") from error


def _about(path: Path) -> dict[str, str]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in about.items()} if isinstance(about, dict) else {}


def _rows(chunk: Path) -> int:
    """From the header alone; 0 for a damaged chunk."""
    try:
        with chunk.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            (rows,) = read(file)[0]
            return int(rows)
    except (OSError, ValueError):
        return 0


def _bytes(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def _last(paths: Iterable[Path]) -> datetime:
    """Folders change when a chunk is added, lock files when a folder is opened, assets when they are converted or read."""
    latest = 0.0
    for path in paths:
        with contextlib.suppress(OSError):
            latest = max(latest, path.stat().st_mtime)
    return datetime.fromtimestamp(latest, UTC)
