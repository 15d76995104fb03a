"""Killed with SIGKILL at random points and started again: the result is the one of an undisturbed run, bit for bit.

Where a kill lands is read from the process's own stack (it writes it on SIGUSR1) up to 3 ms before, so that the product needs no
hook. Three points here; twenty with `make test-kill`, which prints where they landed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

PHASES = ("extraction", "training", "saving", "evaluating")


def is_over(pid: int) -> bool:
    """Whether the process has ended, though its parent may not have looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill_in(place, phase: str, delay: float, rng: random.Random) -> str:
    """Start the job, wait, and kill it in this phase ('' for any); the phase it was killed in, '' if it ended before."""
    trace = place.root / f"trace-{rng.random()}"
    pid = place.forked.start(place.argv, place.cache, place.said, trace)
    time.sleep(0.05)  # until it listens to SIGUSR1
    time.sleep(delay)
    skip = rng.randrange(3)
    while not is_over(pid):
        landed = place.where(pid, trace)
        if landed and (not phase or (landed == phase and skip == 0)):
            time.sleep(rng.uniform(0, 0.003))  # it was seen between two instructions: a kill may come anywhere
            os.kill(pid, signal.SIGKILL)
            if place.forked.wait(pid) == -signal.SIGKILL:
                return landed
            break
        skip = max(0, skip - (landed == phase))
        time.sleep(rng.uniform(0.001, 0.006))
    assert place.forked.wait(pid) == 0, place.tail()
    return ""


def test_killed_three_times_and_resumed(place, straight) -> None:
    rng = random.Random(3)
    landed = [kill_in(place, phase, rng.uniform(0, delay), rng) for phase, delay in KILLS]
    assert landed == [phase for phase, _ in KILLS]
    assert place.finish().differences(straight.outcome) == []
    log = (place.run / "log.txt").read_text()
    assert " is damaged" not in log  # a kill is not damage: nothing half-written is ever taken for a file


KILLS = (("extraction", 0.2), ("saving", 2.0), ("training", 1.0))


@pytest.mark.slow
def test_killed_at_twenty_points(place, straight, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(20)
    wanted = [*PHASES * 4, "", "", "", ""]
    rng.shuffle(wanted)
    counted: Counter[str] = Counter()
    for number, phase in enumerate(wanted, start=1):
        share = 0.1 if phase == "extraction" else 0.6
        landed = ""
        while not landed:
            for folder in (place.run, place.cache):
                shutil.rmtree(folder, ignore_errors=True)
            delay = rng.uniform(0, share) * straight.seconds
            landed = kill_in(place, phase, delay, rng)
            share /= 2
        counted[landed] += 1
        before = sorted(p.name for p in place.run.rglob("*.tmp"))
        differences = place.finish().differences(straight.outcome)
        with capsys.disabled():
            left = f", which left {', '.join(before)}" if before else ""
            verdict = f"DIFFERENT: {differences}" if differences else "identical"
            print(f"\nkill {number:2d} after {delay:4.1f} s while {landed}{left}: resumed, {verdict}", end="")
        assert differences == []
    with capsys.disabled():
        print(f"\nkills landed in: {dict(counted)}")
    assert all(counted[phase] >= 2 for phase in PHASES), counted
