"""What a piece of work cost: wall time and peak memory of this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch


@dataclass(slots=True)
class Cost:
    """Filled when the measured block ends.

    Attributes:
        seconds: Wall time.
        peak_mib: Largest resident memory seen, MiB (on a GPU: largest allocated memory).
    """

    seconds: float = 0.0
    peak_mib: float = 0.0


@contextlib.contextmanager
def measured(every: float = 0.02) -> Iterator[Cost]:
    """Measure the block; resident memory is sampled each `every` seconds, since the system only keeps a lifetime peak."""
    cost, process, stop = Cost(), psutil.Process(), threading.Event()

    def sample() -> None:
        while True:
            cost.peak_mib = max(cost.peak_mib, process.memory_info().rss / 2**20)
            if stop.wait(every):
                return

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    sampler = threading.Thread(target=sample, daemon=True)
    start = time.monotonic()
    sampler.start()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - start
        stop.set()
        sampler.join()
        if torch.cuda.is_available():
            cost.peak_mib = torch.cuda.max_memory_allocated() / 2**20
