"""The command line in this process, a folder of real digits, and a small saved model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from keepsight.backbones.load import load_backbone
from keepsight.cli import main
from keepsight.core import Readout
from keepsight.core.progress import console, log
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead


@pytest.fixture(autouse=True)
def _quiet_handlers() -> Iterator[None]:
    before, level = list(log.handlers), log.level
    yield
    for handler in list(log.handlers):
        if handler not in before:
            log.removeHandler(handler)
    log.setLevel(level or logging.NOTSET)
    console.quiet = False


class Printed:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def start(*arguments: object) -> Printed:
        monkeypatch.setattr("sys.argv", ["keepsight", *(str(a) for a in arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Printed(code, out, err)

    return start


@pytest.fixture
def data(tmp_path: Path) -> Path:
    found = load_digits()
    for i in range(120):
        folder = tmp_path / "data" / str(found.target[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[i] * 15).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten digits, with a head drawn at random."""
    torch.manual_seed(0)
    backbone = load_backbone("test_vit", weights="random", size=32)
    head = LinearHead(features=64, classes=10)
    torch.nn.init.normal_(head.weight_KF)
    path = tmp_path_factory.mktemp("model") / "model"
    TunedModel("probe", backbone, Readout.parse("last:cls"), head, tuple(str(k) for k in range(10))).save(path, "0")
    return path
