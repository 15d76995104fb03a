"""Two processes (gloo) end with the weights of one, for one phase and for two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launching import launch

SCRIPT = """
import sys, torch
from pathlib import Path
from training_parts import SGD, Adversarial, Classifier, batches
from keepsight.train import train
out = Path(sys.argv[1])
for kind in (Classifier, Adversarial):
    method = kind()
    train(method, batches(unlabelled=True), 5, SGD, out / kind.__name__)
    if int(__import__("os").environ.get("RANK", 0)) == 0:
        torch.save(method.state_dict(), out / f"{kind.__name__}.pt")
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launch(SCRIPT, folder / "one", 1, str(folder / "one"))
    launch(SCRIPT, folder / "two", 2, str(folder / "two"))
    return folder


@pytest.mark.parametrize("kind", ["Classifier", "Adversarial"])
def test_two_processes_equal_one(weights: Path, kind: str) -> None:
    one, two = (torch.load(weights / n / f"{kind}.pt", weights_only=True) for n in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, atol=1e-6, rtol=0)


BREAKS = """
import sys, torch
from pathlib import Path
from training_parts import SGD, Classifier, batches
from keepsight.core import UserError, processes
from keepsight.train import train

class Breaks(Classifier):
    def losses(self, batch, phase, step):
        found = super().losses(batch, phase, step)
        broken = step == 2 and processes.index() == 1
        return {name: value * float("nan") if broken else value for name, value in found.items()}

try:
    train(Breaks(), batches(), 5, SGD, Path(sys.argv[1]) / "checkpoints")
except UserError as error:
    Path(sys.argv[1], f"{processes.index()}.txt").write_text(str(error))
"""


def test_a_loss_that_is_not_finite_on_one_process_stops_all(tmp_path: Path) -> None:
    launch(BREAKS, tmp_path / "two", 2, str(tmp_path / "two"))
    said = [(tmp_path / "two" / f"{index}.txt").read_text() for index in (0, 1)]
    assert all("stopped at step 2: the loss is not finite" in text for text in said)
    assert "on another process" in said[0]
    assert "cross_entropy = nan" in said[1]
