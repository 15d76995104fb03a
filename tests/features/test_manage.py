"""Listing and pruning the cache: right figures, the least recently used first, never what is in use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from keepsight.core import Preprocessing, UserError
from keepsight.features.cache import FeatureCache
from keepsight.features.lock import lock_file
from keepsight.features.manage import CacheEntry, list_cache, prune_cache

PREPROCESSING = Preprocessing(size=28, mean=(0, 0, 0), std=(1, 1, 1))
DAY = 86400


def fill(root: Path, name: str, images: int, days_ago: float, width: int = 250) -> Path:
    """A closed cache folder of `images` in two parts, last used so many days ago."""
    cache = FeatureCache(name, PREPROCESSING, root / "features", about={"backbone": name})
    for pool in ("cls", "mean"):
        for start in range(0, images, 10):
            keys = [bytes([i]) * 32 for i in range(start, min(start + 10, images))]
            cache.part(3, pool).add(keys, np.ones((len(keys), width), np.float32))
    folder = cache.folder
    age(days_ago, lock_file(folder), folder, *folder.iterdir())
    return folder


def age(days: float, *paths: Path) -> None:
    for path in paths:
        os.utime(path, (time.time() - days * DAY,) * 2)


def asset(root: Path, days_ago: float) -> Path:
    path = root / "assets" / "mnist_5k-846f6cad587fea38-r1.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(5000))
    age(days_ago, path)
    return path


def names(entries: list[CacheEntry]) -> list[str]:
    return [entry.name for entry in entries]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path, "old", 20, 30)
    fill(tmp_path, "new", 20, 1)
    fill(tmp_path, "middle", 25, 10)
    asset(tmp_path, 99)
    return tmp_path


def test_listing(root: Path) -> None:
    entries = list_cache(root)
    assert names(entries) == ["new", "middle", "old", "mnist_5k"]
    middle = entries[1]
    assert (middle.kind, middle.size, middle.images, middle.parts) == (
        "features",
        28,
        25,
        ("block03-cls", "block03-mean"),
    )
    assert middle.bytes == sum(file.stat().st_size for file in middle.path.rglob("*") if file.is_file())
    assert middle.bytes > 2 * 25 * (250 * 4 + 32)
    assert time.time() - middle.last_used.timestamp() == pytest.approx(10 * DAY, abs=60)
    assert (entries[3].kind, entries[3].bytes) == ("asset", 5000)
    assert not any(entry.in_use for entry in entries)


def test_scenes_and_what_probes_found_are_listed_and_pruned(tmp_path: Path) -> None:
    fresh, old, found = (tmp_path / name for name in ("scenes/0a", "scenes/0b", "probes/few-shot-0c"))
    for folder in (fresh, old, found):
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "1.jpg").write_bytes(bytes(100))
        (folder / "found.json").write_text("{}")
    age(3, old, found)
    listed = {e.path: e for e in list_cache(tmp_path)}
    seen = {(e.kind, e.name, e.images, e.bytes) for e in listed.values() if e.path != fresh}
    assert seen == {("scenes", "0b", 1, 102), ("probe", "few-shot", 0, 102)}
    assert listed[fresh].in_use
    assert not listed[old].in_use
    removed = prune_cache(tmp_path, everything=True)
    assert {e.path for e in removed} == {old, found}
    assert fresh.is_dir()
    assert not old.exists()
    assert not found.exists()


def test_an_empty_or_missing_cache_has_no_entries(tmp_path: Path) -> None:
    assert list_cache(tmp_path / "none") == []
    assert prune_cache(tmp_path / "none", everything=True) == []


def test_the_users_own_cache_is_the_default(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(root))
    assert len(list_cache()) == 4


def test_prune_by_age(root: Path) -> None:
    assert names(prune_cache(root, older_than_days=9)) == ["old", "middle"]
    assert names(list_cache(root)) == ["new", "mnist_5k"]
    assert sorted(path.suffix for path in (root / "features").iterdir()) == ["", ".lock"]  # nothing half-removed


def test_prune_to_a_size_takes_the_least_recently_used_first(root: Path) -> None:
    total = sum(entry.bytes for entry in list_cache(root))
    assert prune_cache(root, max_bytes=total) == []
    assert names(prune_cache(root, max_bytes=total - 1)) == ["old"]
    assert names(prune_cache(root, max_bytes=0)) == ["middle", "new"]  # assets stay
    assert names(list_cache(root)) == ["mnist_5k"]


def test_opening_counts_as_use(root: Path) -> None:
    FeatureCache("old", PREPROCESSING, root / "features")
    assert names(list_cache(root))[0] == "old"


def test_everything_takes_assets_too(root: Path) -> None:
    assert len(prune_cache(root, everything=True)) == 4
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_a_dry_run_removes_nothing(root: Path) -> None:
    assert len(prune_cache(root, everything=True, dry_run=True)) == 4
    assert len(list_cache(root)) == 4


def test_no_rule_is_an_error(root: Path) -> None:
    with pytest.raises(UserError, match="what to prune"):
        prune_cache(root)


def test_what_is_in_use_stays_and_the_rest_goes(root: Path) -> None:
    cache = FeatureCache("old", PREPROCESSING, root / "features")
    assert [entry.name for entry in list_cache(root) if entry.in_use] == ["old"]
    assert names(prune_cache(root, everything=True, dry_run=True)) == ["mnist_5k", "middle", "new"]
    assert names(prune_cache(root, everything=True)) == ["mnist_5k", "middle", "new"]
    assert cache.part(3, "cls").has([bytes([7]) * 32]).all()
    del cache
    assert names(prune_cache(root, everything=True)) == ["old"]


def test_a_folder_can_be_used_again_after_pruning(root: Path) -> None:
    prune_cache(root, everything=True)
    cache = FeatureCache("old", PREPROCESSING, root / "features")
    assert not cache.part(3, "cls").has([bytes([7]) * 32]).any()
    cache.part(3, "cls").add([bytes([7]) * 32], np.ones((1, 4), np.float32))
    assert prune_cache(root, everything=True) == []
    assert list_cache(root)[0].images == 1


def test_a_damaged_chunk_is_listed_without_rows(root: Path) -> None:
    folder = next(entry.path for entry in list_cache(root) if entry.name == "middle")
    for path in folder.rglob("*.npy"):
        path.write_bytes(b"?")
    assert next(entry.images for entry in list_cache(root) if entry.name == "middle") == 0


def test_leftovers_are_swept_while_pruning(root: Path) -> None:
    leftovers = [root / "assets" / ".vit.x.tmp", root / "features" / ".abc.tmp"]
    leftovers[0].write_bytes(b"half")
    leftovers[1].mkdir()
    age(2, *leftovers)
    prune_cache(root, older_than_days=1000)
    assert not any(path.exists() for path in leftovers)
