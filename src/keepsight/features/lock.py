"""Who uses a cache folder: any number of users at once, or one who removes it. Knows nothing of what lies in it.

Advisory locks of the system (flock), so that a killed process leaves none behind. The lock file lies beside the folder, and its
modification time says when the folder was last used. Windows has no such lock: there a folder can be removed between two reads, and
the next read says so.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def lock_file(folder: Path) -> Path:
    """The lock file of a cache folder."""
    return folder.with_name(f"{folder.name}.lock")


def use(folder: Path) -> int | None:
    """Take the folder into use, together with others; waits while somebody removes it.

    Returns:
        What to close (`os.close`) to end the use; None where no lock can be had, such as in a cache that is only readable.
    """
    path = lock_file(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if _locked(handle, path, exclusive=False):
                os.utime(path)
                return handle
            os.close(handle)
    except OSError:
        return None


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[bool]:
    """Within the block nobody else uses the folder, if the value is true; if false, somebody does.

    The block may remove the folder; the lock file goes where the folder is gone.
    """
    path = lock_file(folder)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        alone = _locked(handle, path, exclusive=True)
        yield alone
        if alone and not folder.exists():
            with contextlib.suppress(OSError):  # Windows keeps open files
                path.unlink()
    finally:
        os.close(handle)


def in_use(folder: Path) -> bool:
    """Whether some process uses the folder at this moment."""
    try:
        handle = os.open(lock_file(folder), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _locked(handle, lock_file(folder), exclusive=True)
    finally:
        os.close(handle)


def _locked(handle: int, path: Path, *, exclusive: bool) -> bool:
    """Whether the lock was taken on the file that is at `path` now, and not on one that was removed meanwhile."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
