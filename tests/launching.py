"""Starts a script on one or several processes, as a user does: what the tests under torchrun share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def launch(code: str, folder: Path, processes: int, *arguments: str, **environment: str) -> None:
    """Run `code` in `folder` on this many CPU processes; it can import what lies in tests/. Fails with its last words."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(code)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
