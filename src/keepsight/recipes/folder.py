"""A run's folder: where it goes, whether it is finished, its log, what it ran on. Knows no step of a run."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import keepsight
from keepsight.core import UserError
from keepsight.core.progress import log
from keepsight.recipes.config import TuneConfig, resolve


def is_finished(path: Path) -> bool:
    """Whether a run in this folder came to its end."""
    return (path / "recommendation.json").is_file() and (path / "model" / "model.json").is_file()


def _same_config(path: Path, config: TuneConfig) -> bool:
    try:
        found: Any = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        return resolve(config.data, settings=found) == config
    except (OSError, yaml.YAMLError, UserError, TypeError):
        return False


def _holds_run(path: Path) -> bool:
    """Whether config.yaml is a run's, of whatever version; anything else in a folder is somebody's own and is left alone."""
    try:
        found: Any = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and {"data", "backbone", "methods", "split"} <= found.keys()


def run_folder(config: TuneConfig, out: str | Path | None, overwrite: bool) -> Path:
    """Where the run goes.

    With `out`: that folder; a run of the same config in it is resumed, one of another config is an error unless
    `overwrite`. Without: runs/NAME, or the first of runs/NAME-2, -3... that is free or holds an unfinished run of the
    same config, which is resumed.
    """
    if out is None:
        name = Path(config.data).resolve().stem if Path(config.data).exists() else config.data
        number = 1
        while True:
            path = Path("runs") / (name if number == 1 else f"{name}-{number}")
            if not path.exists() or (_same_config(path, config) and not is_finished(path)):
                return path
            number += 1
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"The output {path} is a file: give a folder.")
    holds_something = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if holds_something and not _same_config(path, config):
        if not _holds_run(path):
            raise UserError(f"The output folder {path} is not empty and holds no run: choose another one.")
        if not overwrite:
            raise UserError(
                f"The folder {path} holds a run with another configuration: choose another --out, or replace it with --overwrite."
            )
    return path


def clear(path: Path) -> None:
    """Remove an old run from its folder; the lock stays."""
    for entry in path.iterdir():
        if entry.name == ".lock":
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Within the block, what is logged also goes to the end of this file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


def environment() -> dict[str, Any]:
    """Versions, platform, threads and GPUs: environment.json."""
    names = (
        "torch",
        "torchvision",
        "timm",
        "peft",
        "accelerate",
        "numpy",
        "scipy",
        "scikit-learn",
        "pillow",
        "safetensors",
    )
    return {
        "keepsight": keepsight.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in names},
    }
