"""`keepsight plan visft`: a table, JSON, and errors in one sentence."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from keepsight.cli.plan import plan_app
from keepsight.core import UserError

SMALL = ["visft", "--backbone", "test_vit", "--size", "64", "--tasks", "detection", "--no-checkpointing"]


def test_table_and_json() -> None:
    said = CliRunner().invoke(plan_app, [*SMALL, "--gpus", "1x4GB"], catch_exceptions=False)
    assert said.exit_code == 0
    assert "LoRA" in said.stdout
    assert "keepsight visft DATA" in said.stdout
    found = CliRunner().invoke(plan_app, [*SMALL, "--gpus", "1x2GB", "--json"], catch_exceptions=False)
    assert found.exit_code == 1  # it does not fit
    assert json.loads(found.stdout)["launch"] is None


def test_precision_is_checked() -> None:
    with pytest.raises(UserError, match="no, bf16 or fp16"):
        CliRunner().invoke(plan_app, [*SMALL, "--gpus", "1x4GB", "--precision", "bf8"], catch_exceptions=False)
