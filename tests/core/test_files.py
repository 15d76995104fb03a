"""Writing: the old file or the new one, never half of one, and one sentence when it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from keepsight.core import UserError
from keepsight.core.files import (
    atomic_directory,
    atomic_file,
    cache_directory,
    is_sound,
    make_directory,
    said_if_full,
    sweep,
    write_text,
)


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


def refused_by_torch(path: Path) -> None:
    import torch

    with path.open("wb") as file:
        torch.save({"x": torch.zeros(100_000)}, file)


def refused_by_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(100_000)}, path)


def refused_by_numpy(path: Path) -> None:
    np.save(path, np.zeros(100_000))


def refused_by_python(path: Path) -> None:
    path.write_bytes(bytes(400_000))


@pytest.mark.parametrize("write", [refused_by_torch, refused_by_safetensors, refused_by_numpy, refused_by_python])
def test_whichever_library_meets_a_full_disk_it_is_one_sentence(tmp_path: Path, write: Callable[[Path], None]) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a larger file is refused as by a full disk
    try:
        with (
            pytest.raises(
                UserError, match=r"^Writing .*/d failed \((File too large|only a part of it could be written)\)"
            ),
            atomic_directory(tmp_path / "d") as outer,
            atomic_directory(outer / "inner") as inner,
        ):
            write(inner / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="dead adapters"), said_if_full(tmp_path):
        raise RuntimeError("dead adapters")
    with pytest.raises(FileNotFoundError), said_if_full(tmp_path):
        (tmp_path / "gone").read_text()
    with pytest.raises(UserError, match="too few"), said_if_full(tmp_path):
        raise UserError("too few")


def test_a_sealed_directory_is_sound_until_a_byte_changes(tmp_path: Path) -> None:
    def make() -> Path:
        with atomic_directory(tmp_path / "d", sealed=True) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "a").write_bytes(b"abcdef")
            (temporary / "b").write_bytes(b"")
        return tmp_path / "d"

    assert is_sound(make())
    (make() / "note.txt").write_text("what somebody adds does no harm")
    assert is_sound(tmp_path / "d")
    for name, content in (
        ("inner/a", b"abcdeg"),
        ("inner/a", b"abc"),
        ("b", b"x"),
        ("COMPLETE", b"{}"),
        ("COMPLETE", b"\xff"),
    ):
        (make() / name).write_bytes(content)
        assert not is_sound(tmp_path / "d"), name
    for name in ("inner/a", "b", "COMPLETE"):
        (make() / name).unlink()
        assert not is_sound(tmp_path / "d"), name


def test_sweeping_removes_nested_leftovers_only(tmp_path: Path) -> None:
    (tmp_path / "a" / ".seed-0.x.tmp" / ".model.y.tmp").mkdir(parents=True)
    (tmp_path / "a" / ".seed-0.x.tmp" / ".file.z.tmp").write_text("half")
    (tmp_path / "a" / ".b.json.x.tmp").write_text("half")
    (tmp_path / "a" / "mine.tmp").write_text("somebody's own")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "mine.tmp"]
