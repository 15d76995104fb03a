"""Outside trackers: what they store locally, that nothing is sent unless asked, and that a failing one stops no training."""

from __future__ import annotations

import logging
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from keepsight.core import UserError
from keepsight.train.trackers import Trackers, check_trackers, outside_trackers

SETTINGS = {"seeds": 2, "finetune_lora": {"epochs": 3, "training": {"optim": {"lr": 0.1}}}}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def test_mlflow_stores_curves_and_settings_in_the_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    for fit in ("seed-0", "seed-1"):
        with Trackers(outside_trackers(["mlflow"], tmp_path, fit, SETTINGS)) as report:
            for step in range(3):
                report(step, {"loss": 1.0 / (step + 1), "lr": 0.1})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("keepsight")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"seed-0", "seed-1"}
    run = runs["seed-0"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seeds": "2", "finetune_lora.epochs": "3", "finetune_lora.training.optim.lr": "0.1"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_wandb_stores_offline(tmp_path: Path) -> None:
    """The real package: its service starts within seconds, and with no network this can only pass offline."""
    pytest.importorskip("wandb")
    with Trackers(outside_trackers(["wandb"], tmp_path, "seed-0", SETTINGS)) as report:
        report(0, {"loss": 0.25})
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    deadline = time.monotonic() + 60
    while b"loss" not in (content := files[0].read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)  # its service may write the last records after finish() has returned
    assert b"loss" in content
    assert b"finetune_lora" in content


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((figures, step))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(("environment", "mode"), [(None, "offline"), ("online", "online")])
def test_wandb_is_online_only_where_the_user_says_so(
    environment: str | None, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake module: what it is called with."""
    called: dict[str, Any] = {}
    run = FakeRun()

    def init(**arguments: Any) -> FakeRun:
        called.update(arguments)
        return run

    fake = types.SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    with Trackers(outside_trackers(["wandb"], tmp_path, "seed-0", SETTINGS)) as report:
        report(4, {"loss": 1.0})
    assert called["mode"] == mode
    assert (called["name"], called["dir"], called["config"]) == ("seed-0", str(tmp_path), SETTINGS)
    assert run.logged == [({"loss": 1.0}, 4)]
    assert run.finished


class Failing:
    def __init__(self, where: str) -> None:
        self.where, self.calls = where, 0

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        self.calls += 1
        if self.where == "call":
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        if self.where == "close":
            raise RuntimeError("the server is gone")


def test_a_failing_tracker_is_said_once_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    bad, good, late = Failing("call"), Failing("never"), Failing("close")
    with Trackers([bad, good, late]) as report:
        for step in range(3):
            report(step, {"loss": 0.0})
    assert (bad.calls, good.calls, late.calls) == (1, 3, 3)
    assert caplog.text.count("No space left") == 1
    assert caplog.text.count("the server is gone") == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_said_before_training(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    check_trackers(["tensorboard"])
    with pytest.raises(UserError, match=rf"pip install 'keepsight\[{name}\]'"):
        check_trackers([name])


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://somewhere")
    with pytest.raises(UserError, match="The tracker mlflow cannot be started") as caught:
        outside_trackers(["mlflow"], tmp_path, "seed-0", SETTINGS)
    assert "\n" not in str(caught.value)
