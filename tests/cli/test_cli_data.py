"""`data check` and `cache`: tables, JSON, exit codes, and what is removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from keepsight.core import Preprocessing
from keepsight.features.cache import FeatureCache


def test_data_check_is_fine_or_exits_with_1(run, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    printed = run("data", "check", data, "--no-near", "--json", report)
    assert printed.code == 0, printed.err
    assert "120" in printed.out
    assert json.loads(report.read_text())["images"] == 120
    (data / "3" / "bad.png").write_text("no image")
    printed = run("data", "check", data, "--no-near", "--json", report)
    assert printed.code == 1
    assert "bad.png" in printed.out
    assert json.loads(report.read_text())["bad"][0]["name"] == "3/bad.png"
    assert not printed.errors
    assert run("data", "check", tmp_path / "missing").code == 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders of features, one of them last used forty days ago."""
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    folders = []
    for name in ("old", "new"):
        features = FeatureCache(name, Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1)))
        features.part(1, "cls").add([bytes([i]) * 32 for i in range(4)], np.zeros((4, 3), np.float32))
        folders.append(features.folder)
    past = time.time() - 40 * 86400
    for path in [folders[0], *folders[0].rglob("*"), *folders[0].parent.glob(f"*{folders[0].name}*")]:
        os.utime(path, (past, past))
    return folders


def test_cache_is_listed_and_pruned(run, cache: list[Path]) -> None:
    old, new = cache
    printed = run("cache", "list")
    assert printed.code == 0, printed.err
    assert printed.out.count("block01-cls") == 2
    printed = run("cache", "prune", "--older-than", 30, "--dry-run")
    assert "1 entries" in printed.out
    assert "would be removed" in printed.out
    assert old.is_dir()
    assert run("cache", "prune", "--older-than", 30).code == 0
    assert not old.exists()
    assert new.is_dir()
    assert run("cache", "prune", "--max-size", 1).out.startswith("0 entries")
    assert run("cache", "prune", "--everything").out.startswith("1 entries")
    assert not new.exists()
    assert run("cache", "prune", "--max-size", -1).code == 2
