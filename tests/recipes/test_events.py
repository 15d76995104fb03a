"""TensorBoard's own reader reads what is written; a full disk costs the curve and not the run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from keepsight.recipes.events import Events


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Events(tmp_path / "fit") as report:
        for step in range(1, 4):
            report(step, {"loss": 1.0 / step, "lr": 0.5})
    found = EventAccumulator(str(tmp_path / "fit")).Reload()
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333)]
    assert [e.value for e in found.Scalars("lr")] == [0.5] * 3


def test_events_that_cannot_be_written_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING, "keepsight"), Events(tmp_path / "fit") as report:
        report(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            for step in range(2, 6):
                report(step, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.messages) == 1
    assert "cannot be written (File too large): going on without" in caplog.messages[0]


def test_a_place_that_cannot_be_made_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "keepsight"), Events(tmp_path / "file" / "fit") as report:
        report(1, {"loss": 1.0})
    assert "going on without" in caplog.text
