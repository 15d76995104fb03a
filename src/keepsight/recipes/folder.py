"""A run's folder: where it goes, whether it is finished, its log, what it ran on. Knows no step of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, final

import torch
import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

import keepsight
from keepsight.core import UserError
from keepsight.core.files import MARKER, is_sound, make_directory, said_if_full, seal, write_text
from keepsight.core.progress import log
from keepsight.data.medical import PUBLISHED
from keepsight.recipes.config import TuneConfig, resolve

PAGE = ("report.json", "report.html", "report.md")

SEAL = ".complete"
"""The last file of a run: hashes of its results."""

RESULTS = ("results.jsonl", "recommendation.json", "diagnosis.json", "losses.json", "notes.json", *PAGE)

MAY_BE = ("tested.json", "ladder.json")
"""Results that only runs with test images have, and comparisons."""


def finish(path: Path) -> None:
    """Mark the run in this folder as finished: its results and its model are sealed, leftovers of training removed.

    The model's card is left out of it: it is there to be edited.
    """
    model = [file for kind in ("json", "safetensors") for file in sorted((path / "model").glob(f"*.{kind}"))]
    there = [name for name in MAY_BE if (path / name).is_file()]
    seal(path, [*RESULTS, *there, *(f"model/{file.name}" for file in model)], SEAL)
    shutil.rmtree(path / "checkpoints", ignore_errors=True)


def reseal(path: Path, names: Sequence[str] = PAGE) -> None:
    """After these files of a sealed folder were written again, the seal holds them as they are now, and all others as they were."""
    for marker in (SEAL, MARKER):
        try:
            digests = json.loads((path / marker).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        changed = [name for name in names if isinstance(digests, dict) and name in digests]
        for name in changed:
            with (path / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        if changed:
            write_text(path / marker, json.dumps(digests))


def is_finished(path: Path) -> bool:
    """Whether a run in this folder came to its end and its results are as they were written; damage is said in the log."""
    if not (path / SEAL).is_file():
        return False
    if is_sound(path, SEAL):
        return True
    log.warning("the results in %s are damaged or incomplete: starting the run again repairs them", path)
    return False


def _read_config(path: Path) -> Any:
    """What config.yaml of a folder holds; None if there is none that can be read."""
    try:
        return yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _same_config(path: Path, config: TuneConfig) -> bool:
    found = _read_config(path)
    try:
        return isinstance(found, dict) and resolve(config.data, settings=found) == config
    except (UserError, TypeError):
        return False


def _holds_run(path: Path) -> bool:
    """Whether config.yaml is a run's, of whatever version; anything else in a folder is somebody's own and is left alone."""
    found = _read_config(path)
    return isinstance(found, dict) and {"data", "backbone", "methods", "split"} <= found.keys()


def _why_no_run(path: Path) -> str:
    if (path / "splits.json").is_file() and (path / "environment.json").is_file():
        return f"The run in {path} has lost its config.yaml, or it is damaged: restore it, or choose another --out."
    return f"The output folder {path} is not empty and holds no run: choose another one."


def run_folder(config: TuneConfig, out: str | Path | None, overwrite: bool) -> Path:
    """Where the run goes.

    With `out`: that folder; a run of the same config in it is resumed, one of another config is an error unless
    `overwrite`. Without: runs/NAME, or the first of runs/NAME-2, -3... that is free or holds an unfinished run of the
    same config, which is resumed.
    """
    if out is None:
        # os.path says False where pathlib raises: a name that is too long for the system
        name = Path(config.data).resolve().stem if os.path.exists(config.data) else config.data  # noqa: PTH110
        scheme, colon, _ = config.data.partition(":")
        name = scheme.lower() if colon and scheme.lower() in PUBLISHED else name
        number = 1
        while True:
            path = Path("runs") / (name if number == 1 else f"{name}-{number}")
            if not path.exists() or (_same_config(path, config) and not is_finished(path)):
                return path
            number += 1
    path, data = Path(out), Path(config.data)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # it will be made, or it is said why not
    except OSError as error:
        raise UserError(f"The output folder {path} cannot be used ({error.strerror}): choose another --out.") from error
    if os.path.isdir(data) and path.resolve().is_relative_to(data.resolve()):  # noqa: PTH112
        raise UserError(f"The output folder {path} lies in the data folder {data}: choose one outside of it.")
    if path.exists() and not path.is_dir():
        raise UserError(f"The output {path} is a file: give a folder.")
    if (path / "ladder.json").is_file():
        raise UserError(f"The folder {path} holds a comparison, not a run of tune: choose another --out.")
    holds_something = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if holds_something and not _same_config(path, config):
        if not _holds_run(path):
            raise UserError(_why_no_run(path))
        if not overwrite:
            raise UserError(
                f"The folder {path} holds a run with another configuration: choose another --out, or replace it with --overwrite."
            )
    return path


IN_USE = "Another process is working in {}: wait for it, or choose another --out."


def check_own_folder(path: Path, data: Sequence[str], facts: str, what: str, is_same: Callable[[Path], bool]) -> None:
    """UserError unless the folder is new, empty, or holds this very `what` ("sweep"): for what is not a run of `tune`.

    Args:
        path: The folder.
        data: Where the images come from: it must not lie in there.
        facts: The file that says what the folder holds.
        what: Its name in sentences.
        is_same: Whether what the folder holds has this configuration; a `ValidationError` is another one, of another version.
    """
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"The output folder {path} cannot be used ({error.strerror}): choose another --out.") from error
    if there and not path.is_dir():
        raise UserError(f"The output {path} is a file: give a folder.")
    for name in data:
        if os.path.isdir(name) and path.resolve().is_relative_to(Path(name).resolve()):  # noqa: PTH112
            raise UserError(f"The output folder {path} lies in the data folder {name}: choose one outside of it.")
    check_writable(path)
    if not there or all(entry.name == ".lock" for entry in path.iterdir()):
        return
    if not (path / facts).is_file():
        raise UserError(f"The output folder {path} is not empty and holds no {what}: choose another one.")
    try:
        same = is_same(path)
    except ValidationError:
        same = False
    if not same:
        raise UserError(f"The folder {path} holds a {what} with another configuration: choose another --out.")


def check_writable(path: Path) -> None:
    """UserError unless the folder can be written, or made where it is not there yet, and no other run is working in it now."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"The output folder {path} cannot be written ({there} is read-only): choose another --out.")
    if (path / ".lock").is_file():
        try:
            FileLock(path / ".lock", timeout=0).acquire().lock.release()
        except Timeout as error:
            raise UserError(IN_USE.format(path)) from error


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Within the block the folder, which is made, belongs to this process.

    Raises:
        UserError: It belongs to another one.
    """
    make_directory(path)
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(IN_USE.format(path)) from error
    try:
        yield
    finally:
        lock.release()


def clear(path: Path) -> None:
    """Remove an old run from its folder; the lock stays.

    The seal goes first and config.yaml last: if this is killed, the folder is still known as a run's, and not as a finished one.
    """
    order = {SEAL: 0, "config.yaml": 2}
    for entry in sorted(path.iterdir(), key=lambda entry: order.get(entry.name, 1)):
        if entry.name == ".lock":
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@final
class _LogFile(logging.FileHandler):
    """A log that cannot be written (the disk is full) is not worth a traceback: what matters fails by itself and says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        del record

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Within the block, what is logged also goes to the end of this file."""
    with said_if_full(path):
        handler = _LogFile(path, encoding="utf-8")
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
