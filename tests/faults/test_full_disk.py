"""A full disk: one sentence, exit code 2, nothing half-written; with room again the same command ends with the same result.

The disk is a small tmpfs in a mount namespace of its own, filled by a ballast file (so the system's real refusal is met by every
library that writes); where the system does not allow that, only the test with a limit on the size of files is run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

KIB = 1024


def whole(root: Path) -> list[str]:
    """Check every file below; what was checked."""
    seen = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        assert not path.name.endswith(".tmp"), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".npy":
            assert len(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            assert load_file(path)
        elif path.name == "COMPLETE":
            for name, digest in json.loads(path.read_text()).items():
                assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == digest
        elif path.name == "report.html":
            assert path.read_text().rstrip().endswith("</html>")
        seen.append(path.name)
    return seen


def the_sentence(said: Path) -> str:
    """The one error sentence of a failed command, which is the last thing it said; nothing else may look like a fault."""
    lines = said.read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], lines
    assert not any("Traceback" in line or "Exception" in line or "Logging error" in line for line in lines), lines
    return errors[0]


class Disk:
    """A small disk, seen from this process and (under another path) from the commands."""

    def __init__(self, forked, inside: Path) -> None:
        self.forked, self.inside = forked, inside
        self.outside = Path(f"/proc/{forked.process.pid}/root{inside}")
        self.ballast = self.outside / "ballast"

    def leave(self, room: int) -> None:
        """Fill the disk but for so many bytes."""
        self.ballast.unlink(missing_ok=True)
        fill = shutil.disk_usage(self.outside).free - room
        with self.ballast.open("wb") as file:
            while fill > 0:
                fill -= file.write(bytes(min(fill, 1 << 20)))


@pytest.fixture
def disk(forked) -> Disk:
    if forked.disk is None:
        pytest.skip("this system does not let a test mount a small tmpfs")
    return Disk(forked, forked.disk)


def refused(disk: Disk, argv: list[str], cache: Path, rooms: tuple[int, ...], root: Path) -> list[str]:
    """Run the command with so many KiB of room each; what could not be written, below the disk's folder."""
    failed = []
    for number, room in enumerate(rooms):
        disk.leave(room * KIB)
        said = root / f"said-{number}"
        assert disk.forked.run(argv, cache, said) == 2, said.read_text()
        sentence = the_sentence(said)
        assert "(No space left on device)" in sentence or "(only a part of it" in sentence
        failed.append(sentence.split("Writing ")[1].split(" failed")[0].removeprefix(f"{disk.inside}/"))
        whole(disk.outside)
    disk.ballast.unlink()
    assert disk.forked.run(argv, cache, root / "last") == 0, (root / "last").read_text()
    assert "report.html" in whole(disk.outside)
    return failed


def test_full_while_features_and_checkpoints_are_written(disk: Disk, straight, job: list[str], tmp_path: Path) -> None:
    argv = [*job, "--out", str(disk.inside / "run")]
    failed = refused(disk, argv, disk.inside / "cache", (0, 200, 2600), tmp_path)
    first, second, third = failed
    assert first == "run/config.yaml"
    assert second.startswith("cache/features/")
    assert third.startswith("run/checkpoints/finetune-")
    assert type(straight.outcome).of(disk.outside / "run").differences(straight.outcome) == []
    shutil.rmtree(disk.outside / "run")


def test_full_while_fits_and_the_model_are_written(disk: Disk, straight, job: list[str], tmp_path: Path) -> None:
    shutil.copytree(straight.path, disk.outside / "run")
    for name in (".complete", "results.jsonl", "recommendation.json", "report.html"):
        (disk.outside / "run" / name).unlink()
    for name in ("model", "cells/probe/seed-0"):
        shutil.rmtree(disk.outside / "run" / name)
    argv = [*job, "--out", str(disk.inside / "run")]
    failed = refused(disk, argv, straight.cache, (600, 1700), tmp_path)
    assert failed == ["run/cells/probe/seed-0", "run/model"]
    assert type(straight.outcome).of(disk.outside / "run").differences(straight.outcome) == []
    shutil.rmtree(disk.outside / "run")


@pytest.mark.slow  # where a small disk can be mounted, the tests above show more
def test_files_that_may_not_grow(place, straight) -> None:
    for limit, words in ((100 * KIB, "cache/features"), (900 * KIB, "run/c")):
        assert place.forked.run(place.argv, place.cache, place.said, limit=limit) == 2, place.said.read_text()
        sentence = the_sentence(place.said)
        assert words in sentence
        assert "(File too large)" in sentence or "(only a part of it" in sentence
        whole(place.root / "run")
        whole(place.root / "cache")
        place.said.unlink()
    assert place.finish().differences(straight.outcome) == []
