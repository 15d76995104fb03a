"""Training curves to trackers outside of keepsight: Weights & Biases and MLflow. Knows no method; nothing is sent unless asked.

Both write below the run's folder unless the user's environment says otherwise: W&B in its offline mode (WANDB_MODE=online sends
them, `wandb sync` sends them later), MLflow into `mlruns/` (MLFLOW_TRACKING_URI names a server). Their own usage reports are off.
A curve is not worth a run: what a tracker raises while training is said once, and training goes on without it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, final, get_args

from keepsight.core import UserError
from keepsight.core.progress import log

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
PROJECT = "keepsight"
"""Project (W&B) and experiment (MLflow), unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set."""


class Tracker(Protocol):
    """Takes the named figures of a step; closed once at the end."""

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a step."""

    def close(self) -> None:
        """Write what is left."""


@final
class Trackers:
    """Several trackers as one function (step, figures); a context manager. One that fails is left out from then on."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Give the figures to each."""
        for tracker in list(self._trackers):
            try:
                tracker(step, figures)
            except Exception as error:  # of any library, any kind
                self._trackers.remove(tracker)
                log.warning("%s failed (%s): training goes on without it", type(tracker).__name__, _first_line(error))

    def close(self) -> None:
        """Close all."""
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                log.warning("closing %s failed (%s)", type(tracker).__name__, _first_line(error))
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def outside_trackers(
    names: Sequence[TrackerName], folder: Path, name: str, settings: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers that were asked for, TensorBoard excepted (every run writes that itself).

    Args:
        names: From `TRACKERS`.
        folder: The run's folder; `wandb/` and `mlruns/` appear in it.
        name: Of this fit, for example 'finetune-lora-seed-0'.
        settings: The run's settings, nested; shown beside the curves.

    Raises:
        UserError: A package is missing, or a tracker cannot be started.
    """
    made: list[Tracker] = []
    for kind, start in (("wandb", WandbTracker), ("mlflow", MlflowTracker)):
        if kind not in names:
            continue
        try:
            made.append(start(folder, name, settings))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The tracker {kind} cannot be started ({_first_line(error)}): check its settings, or leave it out of trackers."
            ) from error
    return made


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UserError if a package is missing: before anything is computed."""
    if "wandb" in names:
        _wandb()
    if "mlflow" in names:
        _mlflow()


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb") from error
    return wandb


def _mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_ALLOW_FILE_STORE", "true"
    )  # a database needs far more packages than the client itself
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own dependencies
            import mlflow
    except ImportError as error:
        raise _missing("mlflow") from error
    return mlflow


@final
class WandbTracker:
    """One W&B run a fit."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        wandb = _wandb()
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            group=folder.name,
            dir=str(folder),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False
            ),
        )

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


@final
class MlflowTracker:
    """One MLflow run a fit."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        mlflow = _mlflow()
        self._entities = mlflow.entities
        where = os.environ.get("MLFLOW_TRACKING_URI", (folder.resolve() / "mlruns").as_uri())
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = mlflow.tracking.MlflowClient(tracking_uri=where)
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self._client.create_experiment(experiment)
            tags = {"keepsight.run": folder.name}
            self._run: str = self._client.create_run(number, run_name=name, tags=tags).info.run_id
            params = [self._entities.Param(key, str(value)[:500]) for key, value in _flat(settings).items()]
            for start in range(0, len(params), 100):  # what one call may hold
                self._client.log_batch(self._run, params=params[start : start + 100])

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a step."""
        import time

        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _missing(package: str) -> UserError:
    return UserError(
        f"The tracker {package} needs the package {package}: install it with pip install 'keepsight[{package}]'."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
