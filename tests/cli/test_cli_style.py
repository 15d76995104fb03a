"""keepsight style: one sentence for what cannot be looked at, two files for what can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keepsight.backbones.load import load_backbone
from keepsight.core import Readout
from keepsight.export.model import TunedModel
from keepsight.heads.content_style import ContentStyleHead


@pytest.fixture
def styled(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    head = ContentStyleHead(features=64, reduced=16, classes=10, style=4)
    torch.nn.init.normal_(head.reduction.axes_FD)
    backbone = load_backbone("test_vit", weights="random", size=32)
    path = tmp_path / "styled"
    TunedModel("content-style", backbone, Readout.parse("last:cls"), head, tuple("0123456789")).save(path, "0")
    return path


def test_a_page_and_its_figures(run, styled: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "look"
    printed = run("style", styled, data, "--out", out, "--images", 4)
    assert printed.code == 0, printed.err
    assert "content kept in" in printed.out
    assert sorted(p.name for p in out.iterdir()) == ["style.html", "style.json"]
    again = run("style", styled, data, "--out", out, "--images", 4)
    assert (again.code, len(again.errors)) == (2, 1)
    assert "--overwrite" in again.err
    assert run("style", styled, data, "--out", out, "--images", 4, "--overwrite").code == 0


def test_a_model_without_style_is_one_sentence(run, model: Path, data: Path, tmp_path: Path) -> None:
    printed = run("style", model, data, "--out", tmp_path / "look")
    assert (printed.code, len(printed.errors)) == (2, 1)
    assert "was fitted by probe" in " ".join(printed.err.split())
    assert not (tmp_path / "look").exists()
