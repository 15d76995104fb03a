"""Two runs into one folder: the second refuses at once, and the first does not notice."""

from __future__ import annotations

import time


def test_the_second_run_refuses(place, straight) -> None:
    first = place.forked.start(place.argv, straight.cache, place.said)
    while not (place.run / "cells").is_dir():
        assert first not in place.forked.codes
        time.sleep(0.005)
    for extra in ([], ["--overwrite"]):
        other = place.root / f"other{len(extra)}"
        begin = time.monotonic()
        assert place.forked.run([*place.argv, *extra], straight.cache, other) == 2
        assert time.monotonic() - begin < straight.seconds / 2
        said = other.read_text().splitlines()
        assert len(said) == 1
        assert said[0].startswith("error: Another process is working in ")
        assert first not in place.forked.codes  # it is still at work
    assert place.forked.wait(first) == 0, place.said.read_text()
    assert type(straight.outcome).of(place.run).differences(straight.outcome) == []
