"""Work for several processes on one machine: fresh interpreters, one thread each, gone with the one that started them.

Knows no method: a task is a function that can be pickled, and what it is called with.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from keepsight.core import UserError
from keepsight.core.progress import console

Task = TypeVar("Task")
Found = TypeVar("Found")

ALONE = 10.0
"""Seconds before workers are started: they need about as long to import what they use, and short work is done by then."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_parallel(
    work: Callable[[Task], Found], tasks: Sequence[Task], jobs: int
) -> Generator[tuple[Task, Found], None, None]:
    """Each task with what `work` says of it, as they are finished; the first ones in this process, until `ALONE` is over.

    Whatever ends the loop (the last task, an error, an interrupt) ends the workers, too.

    Raises:
        UserError: The system ended a worker.
    """
    left, start = deque(tasks), time.monotonic()
    with one_thread():
        while left and (min(jobs, len(left)) < 2 or time.monotonic() - start < ALONE):
            task = left.popleft()
            yield task, work(task)
    if left:
        yield from _in_workers(work, left, jobs)


def _in_workers(
    work: Callable[[Task], Found], tasks: Collection[Task], jobs: int
) -> Generator[tuple[Task, Found], None, None]:
    others = multiprocessing.active_children()
    with _single_threaded_children():
        pool = ProcessPoolExecutor(min(jobs, len(tasks)), multiprocessing.get_context("spawn"), _begin)
        try:
            futures = {pool.submit(work, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "The system ended a worker process, probably for want of memory: start the same command again with fewer --jobs."
            ) from error
        except BaseException:
            for child in multiprocessing.active_children():
                if child not in others:
                    child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a new worker: an interrupt is the parent's to handle, and the parent's end is the worker's, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    console.quiet = True
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes in one thread, as a worker does: the same figures, whatever the number of jobs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started within the block read from their environment how many threads BLAS may have."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
