"""What a killed conversion left in the cache goes with the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from keepsight.assets import fetch
from keepsight.assets.catalogue import MNIST_5K
from keepsight.core import UserError


def test_old_leftovers_are_swept_before_an_asset_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path))

    def no_network(*_: object) -> Path:
        raise UserError("no network")

    monkeypatch.setattr(fetch, "_download", no_network)
    folder = tmp_path / "assets"
    folder.mkdir()
    old, young, whole = folder / ".vit.a.tmp", folder / ".vit.b.tmp", folder / "vit.safetensors"
    for path, hours in ((old, 25), (young, 1), (whole, 99)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - hours * 3600,) * 2)
    with pytest.raises(UserError, match="no network"):
        fetch.asset_path(MNIST_5K)
    assert sorted(folder.iterdir()) == [young, whole]
