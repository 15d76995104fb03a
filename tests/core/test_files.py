"""Writing: the old file or the new one, never half of one, and one sentence when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepsight.core import UserError
from keepsight.core.files import atomic_directory, atomic_file, cache_directory, make_directory, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for name in ("one", "two"):
        with atomic_directory(path) as temporary:
            (temporary / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["two"]
    with pytest.raises(ZeroDivisionError), atomic_directory(path) as temporary:
        (temporary / "three").write_text("3")
        raise ZeroDivisionError
    assert [p.name for p in path.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"), full.open("w") as file:
        file.write("x")
        file.flush()
    with (
        pytest.raises(UserError, match=r"Writing .*failed \(No space left on device\)"),
        atomic_file(tmp_path / "never-there.txt") as _,
    ):
        raise OSError(28, "No space left on device")


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        make_directory(tmp_path / "file" / "below")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_directory() == Path("/a")
    monkeypatch.delenv("KEEPSIGHT_CACHE")
    assert cache_directory() == Path("/b/keepsight")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "keepsight"
