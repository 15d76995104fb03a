"""Writing files so that a kill at any moment leaves the old file or the new one, never half of one.

What must be known to be whole when it is read again (checkpoints, finished fits, runs) is sealed with a marker of hashes.
Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from keepsight.core.errors import UserError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a disk is full, a quota is used up, or a file is larger than it may be."""

MARKER = "COMPLETE"
"""The file that seals a directory: the sha256 of the others, as JSON."""


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
    reason = error.strerror or "only a part of it could be written"
    return UserError(f"Writing {path} failed ({reason}): make room or choose another place.")


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's refusal behind an error of a library that writes files.

    torch.save raises a RuntimeError about positions on top of it, safetensors has only its text, "... (os error 28)", and numpy an
    OSError without a number, "512 requested and 27 written".
    """
    while error is not None:
        if isinstance(error, OSError) and (error.errno in NO_ROOM or "requested and" in str(error)):
            return error
        if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", str(error))):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def said_if_full(path: Path) -> Iterator[None]:
    """If the disk that holds `path` is full (or a quota used up), say so in one sentence, whichever library met it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if system := _system_error(error):
            raise _failed(path, system) from error
        raise


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        with said_if_full(path):
            yield
    except UserError as error:  # of a writer inside of this one, whose temporary place says nothing to a user
        if system := _system_error(error.__cause__):
            raise _failed(path, system) from error
        raise
    except OSError as error:
        raise _failed(path, error) from error


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
        with _said(path):
            yield temporary
            _sync_file(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
            _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path, sealed: bool = False) -> Iterator[Path]:
    """The same for a directory: filled under a temporary name, every file flushed, then renamed; an old one is replaced.

    With `sealed`, a marker with the hashes of all files goes with it (see `is_sound`).
    """
    make_directory(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp"))
    except OSError as error:
        raise _failed(path, error) from error
    old = temporary.with_suffix(".old.tmp")
    try:
        with _said(path):
            yield temporary
            if sealed:
                seal(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync_file(file)
            temporary.chmod(0o755)
            _replace_directory(temporary, path, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replace_directory(new: Path, path: Path, old: Path) -> None:
    if path.exists():
        path.rename(old)  # renamed, not removed: removing takes long enough to be killed half-way
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _sync_directory(path.parent)


def seal(directory: Path, names: Sequence[str] | None = None, marker: str = MARKER) -> None:
    """Write the marker with the sha256 of these files (paths in the directory), of all in it by default."""
    if names is None:
        found = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
        names = [name for name in found if name != marker]
    write_text(directory / marker, json.dumps({name: _sha256(directory / name) for name in names}))


def is_sound(directory: Path, marker: str = MARKER) -> bool:
    """Whether the marker is there and every file it names is, byte for byte, the one that was sealed."""
    try:
        digests = json.loads((directory / marker).read_text(encoding="utf-8"))
        if not isinstance(digests, dict) or not digests:
            return False
        return all(_sha256(directory / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(path: Path, older_than: float = 0.0) -> None:
    """Remove what killed writers left below a directory.

    With other processes at work there, give an age in seconds at which a temporary file is surely nobody's any more.
    """
    before = time.time() - older_than
    for leftover in sorted(path.rglob(".*.tmp")):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if older_than and leftover.stat().st_mtime > before:
                continue
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
