"""Under torchrun bad input is said once, and no process hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def test_bad_input_is_said_once_and_all_processes_end(tmp_path: Path) -> None:
    for i in range(12):
        folder = tmp_path / "data" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "data" / "class1" / "11.png").write_bytes(b"no image")  # in the second process's share
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "keepsight", "tune"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "data"), "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "KEEPSIGHT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr[-2000:]
    assert "11.png" in said[0]
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()
