"""Two runs into one folder: the second refuses at once, and the first does not notice."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path


def test_the_second_run_refuses(place, straight, halfway: Path) -> None:
    shutil.copytree(halfway, place.run)
    first = place.forked.start(place.argv, straight.cache, place.said)
    log = place.run / "log.txt"
    while "resuming from" not in log.read_text():
        assert first not in place.forked.codes
        time.sleep(0.002)
    os.kill(first, signal.SIGSTOP)  # at work, and not done before the others have asked
    for extra in ([], ["--overwrite"]):
        other = place.root / f"other{len(extra)}"
        begin = time.monotonic()
        assert place.forked.run([*place.argv, *extra], straight.cache, other) == 2
        assert time.monotonic() - begin < straight.seconds / 2
        said = other.read_text().splitlines()
        assert len(said) == 1
        assert said[0].startswith("error: Another process is working in ")
        assert first not in place.forked.codes
    os.kill(first, signal.SIGCONT)
    assert place.forked.wait(first) == 0, place.tail()
    assert type(straight.outcome).of(place.run).differences(straight.outcome) == []
