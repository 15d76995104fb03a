"""Two processes (gloo) end with the weights of one, for one phase and for two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from training_parts import SGD, Adversarial, Classifier, batches
from keepsight.train import train
out = Path(sys.argv[1])
for kind in (Classifier, Adversarial):
    method = kind()
    train(method, batches(unlabelled=True), 5, SGD, out / kind.__name__)
    if int(__import__("os").environ.get("RANK", 0)) == 0:
        torch.save(method.state_dict(), out / f"{kind.__name__}.pt")
"""


def run(out: Path, processes: int) -> None:
    out.mkdir()
    script = out / "script.py"
    script.write_text(SCRIPT)
    start = [sys.executable, str(script)]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        start = [sys.executable, *torchrun, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, str(out), str(Path(__file__).parents[1])], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    run(folder / "one", 1)
    run(folder / "two", 2)
    return folder


@pytest.mark.parametrize("kind", ["Classifier", "Adversarial"])
def test_two_processes_equal_one(weights: Path, kind: str) -> None:
    one, two = (torch.load(weights / n / f"{kind}.pt", weights_only=True) for n in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, atol=1e-6, rtol=0)
