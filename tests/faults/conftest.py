"""What the fault tests share: a small but whole job, a parent that forks it, and the comparison with an undisturbed run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# The tests read /proc and mount a small disk.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]

JOB = [
    "tune",
    "digits",
    "--methods",
    "probe,finetune-lora,finetune-full",
    "--seeds",
    "2",
    "--size",
    "32",
    "--readout",
    "3,5:mean",
    "--labels",
    "60",
    "--test",
    "100",
    "backbone.name=test_vit",
    "backbone.weights=random",
    "split.validation=0.2",
    "selection_folds=2",
    "forgetting.measure=false",
    *(
        f"finetune_{adapter}.{setting}"
        for adapter in ("lora", "full")
        for setting in ("epochs=2", "training.checkpoint_steps=2", "training.validate_every=3")
    ),
]
"""Real digits, every kind of fit, validation that chooses among checkpoints: about 6 s on one thread."""

DISK_SIZE = 40_000_000

NOT_COMPARED = {"seconds", "peak_mib"}


@dataclass
class Forked:
    """The parent process (see `forked.py`) and what it said."""

    process: subprocess.Popen[str]
    codes: dict[int, int] = field(default_factory=dict)
    disk: Path | None = None
    """A tmpfs that only it and its children see."""

    @classmethod
    def begin(cls, before: list[str]) -> Forked:
        """Start it, behind a command such as ['unshare', '-m']."""
        program = [*before, sys.executable, str(Path(__file__).parent / "forked.py")]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return cls(process)

    def _hear(self) -> dict[str, int]:
        assert self.process.stdout is not None
        said: dict[str, int] = json.loads(self.process.stdout.readline())
        if "code" in said:
            self.codes[said["pid"]] = said["code"]
        return said

    def start(
        self, argv: list[str], cache: Path, log: Path, trace: Path | None = None, limit: int | None = None
    ) -> int:
        """Fork the command; its process id."""
        order = {"argv": argv, "env": {"KEEPSIGHT_CACHE": str(cache)}, "log": str(log), "limit": limit}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**order, "trace": str(trace) if trace else None}) + "\n")
        self.process.stdin.flush()
        while "code" in (said := self._hear()):
            pass
        return said["pid"]

    def wait(self, pid: int) -> int:
        """The exit code; negative for a signal."""
        while pid not in self.codes:
            self._hear()
        return self.codes[pid]

    def run(self, argv: list[str], cache: Path, log: Path, limit: int | None = None) -> int:
        """Start and wait."""
        return self.wait(self.start(argv, cache, log, limit=limit))

    def end(self) -> None:
        """Stop it and its children."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """One parent for all tests of a session; where the system allows it, with a small disk of its own."""
    disk = tmp_path_factory.mktemp("disk")
    parent = None
    for unshare in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        mount = [*unshare, "sh", "-c", f'mount -t tmpfs -o size={DISK_SIZE} tmpfs {disk} && exec "$@"', "sh"]
        try:
            subprocess.run([*mount, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        parent = Forked.begin(mount)
        parent.disk = disk
        break
    parent = parent or Forked.begin([])
    yield parent
    parent.end()


@dataclass(frozen=True)
class Outcome:
    """All that must be the same however often a run was interrupted: file name to content."""

    files: dict[str, Any]

    @classmethod
    def of(cls, run: Path) -> Outcome:
        """Of a finished run's folder."""
        files: dict[str, Any] = {
            "results": [_kept(json.loads(line)) for line in (run / "results.jsonl").read_text().splitlines()]
        }
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run).as_posix()
            if path.name == "cell.json":
                files[name] = _kept(json.loads(path.read_text()))
            elif path.suffix in (".npy", ".safetensors") or path.name in (
                "splits.json",
                "readout.json",
                "recommendation.json",
                "model.json",
            ):
                files[name] = path.read_bytes()
        return cls(files)

    def differences(self, other: Outcome) -> list[str]:
        """Names of what is missing or differs."""
        names = self.files.keys() | other.files.keys()
        return sorted(name for name in names if self.files.get(name) != other.files.get(name))


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in NOT_COMPARED}


@dataclass(frozen=True)
class Straight:
    """The undisturbed run."""

    path: Path
    cache: Path
    outcome: Outcome
    seconds: float


@pytest.fixture(scope="session")
def straight(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The job, once, undisturbed."""
    root = tmp_path_factory.mktemp("straight")
    begin = time.monotonic()
    code = forked.run([*JOB, "--out", str(root / "run")], root / "cache", root / "said")
    assert code == 0, (root / "said").read_text()
    return Straight(root / "run", root / "cache", Outcome.of(root / "run"), time.monotonic() - begin)


@pytest.fixture(scope="session")
def halfway(forked: Forked, straight: Straight, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job, killed when its last fit had two checkpoints: to finish it costs little."""
    root = tmp_path_factory.mktemp("halfway")
    pid = forked.start([*JOB, "--out", str(root / "run")], straight.cache, root / "said")
    newest = root / "run" / "checkpoints" / "finetune-full/seed-1" / "step-00000004"
    while not newest.exists():
        assert pid not in forked.codes
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert forked.wait(pid) == -signal.SIGKILL
    return root / "run"


class Place:
    """A folder for one disturbed run, with its own cache."""

    def __init__(self, root: Path, forked: Forked) -> None:
        self.root, self.forked = root, forked
        self.run, self.cache, self.said = root / "run", root / "cache", root / "said"
        self.argv = [*JOB, "--out", str(self.run)]

    def finish(self, cache: Path | None = None) -> Outcome:
        """Run the same command until its end; what it left."""
        code = self.forked.run(self.argv, cache or self.cache, self.said)
        assert code == 0, self.tail()
        leftovers = [p for p in self.run.rglob("*") if p.name.endswith(".tmp") or p.name == "checkpoints"]
        assert not leftovers
        return Outcome.of(self.run)

    def tail(self) -> str:
        """The end of what the commands said."""
        return self.said.read_text()[-1500:]

    def where(self, pid: int, trace: Path) -> str:
        """The phase the process is in now, from the stack of its main thread."""
        before = trace.stat().st_size if trace.exists() else 0
        os.kill(pid, signal.SIGUSR1)
        for _ in range(200):
            text = trace.read_text()[before:] if trace.exists() else ""
            if text.endswith("end\n"):
                return phase_of(text)
            time.sleep(0.0005)
        return ""


def phase_of(stack: str) -> str:
    """'saving', 'extraction', 'training', 'evaluating' or 'between'."""
    if re.search(r"core/files\.py|train/checkpoint\.py|in save\b|in add\b|safetensors/|npyio", stack):
        return "saving"
    if "keepsight/features/" in stack:
        return "extraction"
    if "keepsight/train/" in stack:
        return "training"
    if re.search(r"keepsight/evaluate/(?!cost)|in probabilities\b|in predict\b", stack):
        return "evaluating"
    return "between"


@pytest.fixture
def place(tmp_path: Path, forked: Forked) -> Place:
    return Place(tmp_path, forked)


@pytest.fixture(scope="session")
def job() -> list[str]:
    return JOB
