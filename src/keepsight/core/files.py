"""Writing files so that a kill at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keepsight.core.errors import UserError


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _failed(path: Path, error: OSError) -> UserError:
    return UserError(f"Writing {path} failed ({error.strerror}): make room or choose another place.")


def make_directory(path: Path) -> Path:
    """Create a directory with its parents, or say in one sentence why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The directory {path} cannot be created ({error.strerror}): choose another place.") from error
    return path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; flush and rename it onto `path` when the block ends well, else remove it.

    Raises UserError if the disk is full or the place cannot be written.
    """
    make_directory(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    except OSError as error:
        raise _failed(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync_file(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """The same for a directory: filled under a temporary name, every file flushed, then renamed; an old one is replaced."""
    make_directory(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp"))
    except OSError as error:
        raise _failed(path, error) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync_file(file)
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed writers left below a directory; only for its sole user (a run that holds its lock)."""
    for leftover in sorted(path.rglob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cache_directory() -> Path:
    """Where converted assets and features are kept: $KEEPSIGHT_CACHE, else $XDG_CACHE_HOME/keepsight, else ~/.cache/keepsight."""
    if root := os.environ.get("KEEPSIGHT_CACHE"):
        return Path(root).expanduser()
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "keepsight"
    return Path.home() / ".cache" / "keepsight"
